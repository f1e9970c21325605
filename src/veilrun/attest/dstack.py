"""The envelope in which dstack's guests hand out evidence: SCALE, or JSON with its hex.

    version         1   0
    kind            1   0 Intel TDX, 2 AWS Nitro, 3 AMD SEV-SNP
    evidence            Nitro: bytes, the document. SNP: bytes, the report; list of bytes,
                        certificates as PEM or DER; text, what its host data is about.
                        TDX: bytes, the quote; list of RTMR (4), type (4), bytes, the digest,
                        text, bytes: the event log (`runtime_events`)
    events              list of (text, bytes); of TDX, those of the log that the guest wrote
    report data    64   the same bytes as in the evidence
    configuration       text

Bytes, texts and lists begin with their length or count as a compact number: the two lowest bits
of its first byte say how many bytes it has (1, 2 or 4, little-endian), the others are the number.

JSON: `{"attestation": hex}`.

Covered: the layout, to the last byte. Not covered: what configuration, host data and the events
of other kinds than TDX mean.
The envelope is not signed; it matters only by the evidence in it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from veilrun.attest.certificates import is_pem, read_der, read_pem
from veilrun.attest.claims import Kind
from veilrun.attest.endorsements import Endorsements, joined
from veilrun.attest.event_logs import Event, EventLog
from veilrun.attest.reading import Cursor
from veilrun.attest.reasons import AppraisalError, Reason
from veilrun.attest.runtime_events import RUNTIME, log_of, make_event
from veilrun.errors import DecodeError
from veilrun.wire.fields import Fields, json_object

MAX_BYTES: Final = 1 << 20
_KINDS: Final = {Kind.INTEL_TDX: 0, Kind.AWS_NITRO: 2, Kind.AMD_SEV_SNP: 3}
_JSON_HEAD: Final = re.compile(rb'\s*\{\s*"attestation"\s*:\s*"((?:[0-9a-f]{2}){32})')
_REPORT_DATA_BYTES: Final = 64
_MAX_CERTIFICATES: Final = 8
_MAX_EVENTS: Final = 4096


@dataclass(frozen=True, eq=False)
class Envelope:
    """evidence: as its vendor has it. carried: certificates. report_data: as the envelope says.
    log: a TD's.
    """

    evidence: bytes
    carried: Endorsements
    report_data: bytes
    log: EventLog | None = None


def peek(data: bytes, kind: Kind) -> bytes:
    """Where evidence of `kind` would begin, were `data` an envelope of it; empty if it is not."""
    head = data[:64]
    if found := _JSON_HEAD.match(data[:256]):
        head = bytes.fromhex(found[1].decode("ascii"))
    if not head.startswith(bytes([0, _KINDS[kind]])):
        return b""
    cursor = Cursor(head[2:], "envelope")
    try:
        _compact(cursor, "length")
    except DecodeError:
        return b""
    return cursor.rest()


def parse_envelope(data: bytes, kind: Kind) -> Envelope:
    """The envelope in `data`, with evidence of `kind`."""
    if len(data) > MAX_BYTES:
        raise DecodeError(f"envelope of {len(data)} bytes is over {MAX_BYTES}")
    cursor = Cursor(_unhex(data) if _JSON_HEAD.match(data[:256]) else data, "envelope")
    cursor.expect(bytes([0, _KINDS[kind]]), "version and kind")
    evidence = _sized(cursor, "evidence")
    carried = Endorsements()
    if kind is Kind.AMD_SEV_SNP:
        n_certificates = _compact(cursor, "certificates")
        if n_certificates > _MAX_CERTIFICATES:
            raise DecodeError(f"envelope with {n_certificates} certificates")
        blobs = [_sized(cursor, "certificate") for _ in range(n_certificates)]
        carried = joined(read_pem(one) if is_pem(one) else read_der(one) for one in blobs)
        _sized(cursor, "text of host data")
    log, written = _log(cursor) if kind is Kind.INTEL_TDX else (None, [])
    events = [_event(cursor) for _ in range(_count(cursor))]
    if log is not None and events != written:
        raise DecodeError("envelope: its two lists of the guest's events differ")
    report_data = cursor.take(_REPORT_DATA_BYTES, "report data")
    _sized(cursor, "configuration")
    cursor.finish()
    return Envelope(evidence, carried, report_data, log)


def verify_stated(stated: bytes, authentic: bytes | None, check: str) -> None:
    """The report data that an envelope states are the evidence's own. check: named in errors.

    Raises:
        AppraisalError: digest.
    """
    if stated != authentic:
        raise AppraisalError(
            Reason.DIGEST,
            check,
            f"the envelope states {stated.hex()}, the evidence has {(authentic or b'').hex()}",
        )


def _unhex(data: bytes) -> bytes:
    fields = Fields(json_object(data), "envelope")
    text = fields.take("attestation", _text)
    fields.finish()
    try:
        return bytes.fromhex(text)
    except ValueError as error:
        raise DecodeError("envelope.attestation is not hex") from error


def _text(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise DecodeError(f"{name} is not text", field=name)
    return value


def _log(cursor: Cursor) -> tuple[EventLog, list[tuple[bytes, bytes]]]:
    """The event log, and name and payload of those that the guest wrote."""
    events: list[Event] = []
    written = []
    for _ in range(_count(cursor)):
        rtmr, kind = cursor.number(4, "RTMR"), cursor.number(4, "type")
        digest = _sized(cursor, "digest")
        name, payload = _event(cursor)
        events.append(make_event(rtmr, kind, digest, name, payload))
        if kind == RUNTIME:
            written.append((name, payload))
    return log_of(events), written


def _event(cursor: Cursor) -> tuple[bytes, bytes]:
    return _sized(cursor, "event"), _sized(cursor, "payload")


def _count(cursor: Cursor) -> int:
    n_events = _compact(cursor, "events")
    if n_events > _MAX_EVENTS:
        raise DecodeError(f"envelope with {n_events} events")
    return n_events


def _sized(cursor: Cursor, name: str) -> bytes:
    return cursor.take(_compact(cursor, f"length of {name}"), name)


def _compact(cursor: Cursor, name: str) -> int:
    """A compact number, in its shortest form; none here needs more than four bytes."""
    first = cursor.number(1, name)
    match first & 3:
        case 0:
            number, least = first >> 2, 0
        case 1:
            number, least = (cursor.number(1, name) << 8 | first) >> 2, 1 << 6
        case 2:
            number, least = (cursor.number(3, name) << 8 | first) >> 2, 1 << 14
        case _:
            raise DecodeError(f"envelope: {name} is over four bytes long")
    if number < least:
        raise DecodeError(f"envelope: {name} is not in its shortest form")
    return number
