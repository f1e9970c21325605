"""The files that quotes come in.

    binary, or hex        the quote
    JSON of dstack        {"quote": hex, "event_log": JSON as text, "report_data": hex,
                          "vm_config": text}
    envelope of dstack    SCALE, or JSON with its hex (`dstack`)

Event logs may also be files of their own, as may the report of Azure's paravisor: they are at hand
like endorsements.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from veilrun.attest.claims import Kind
from veilrun.attest.dstack import parse_envelope, peek
from veilrun.attest.event_logs import EventLog
from veilrun.attest.intel.quotes import MAX_BYTES, Quote, is_quote, parse_quote
from veilrun.attest.runtime_events import hex_bytes, parse_events, utf8
from veilrun.errors import DecodeError
from veilrun.wire.fields import Fields, json_object

_MAX_JSON_BYTES: Final = 1 << 20
_HEX_HEAD: Final = 64


@dataclass(frozen=True, eq=False)
class IntelEvidence:
    """A quote. log: what came with it. stated: the report data, as its envelope states them."""

    quote: Quote
    log: EventLog | None = None
    stated: bytes | None = None

    @property
    def kind(self) -> Kind:
        """SGX or TDX."""
        return self.quote.kind


def recognise(data: bytes) -> bool:
    """Whether `data` looks like evidence of SGX or TDX."""
    if is_quote(data) or _is_hex(data) or is_quote(peek(data, Kind.INTEL_TDX)):
        return True
    return data.lstrip()[:1] == b"{" and b'"quote"' in data and b'"event_log"' in data


def parse(data: bytes) -> IntelEvidence:
    """The evidence in `data`."""
    if peek(data, Kind.INTEL_TDX):
        envelope = parse_envelope(data, Kind.INTEL_TDX)
        quote = parse_quote(envelope.evidence)
        return IntelEvidence(quote, envelope.log, envelope.report_data)
    if data.lstrip()[:1] == b"{":
        return _json(data)
    return IntelEvidence(parse_quote(_unhex(data) if _is_hex(data) else data))


def _json(data: bytes) -> IntelEvidence:
    if len(data) > _MAX_JSON_BYTES:
        raise DecodeError(f"quote in {len(data)} bytes of JSON, over {_MAX_JSON_BYTES}")
    fields = Fields(json_object(data), "evidence")
    quote = parse_quote(fields.take("quote", hex_bytes))
    log = parse_events(fields.take("event_log", utf8).decode())
    stated = fields.take("report_data", hex_bytes)
    fields.take("vm_config", utf8, b"")
    fields.finish()
    return IntelEvidence(quote, log, stated)


def _is_hex(data: bytes) -> bool:
    try:
        return is_quote(bytes.fromhex(data.lstrip()[:_HEX_HEAD].decode("ascii")))
    except ValueError:
        return False


def _unhex(data: bytes) -> bytes:
    if len(data) > 3 * MAX_BYTES:
        raise DecodeError(f"quote of {len(data)} characters")
    try:
        return bytes.fromhex(data.decode("ascii"))
    except ValueError as error:
        raise DecodeError("quote is not hex") from error
