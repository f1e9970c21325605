"""dstack's event log of a trust domain: what its firmware measured, and its guest after that.

Each event: RTMR, type, digest (SHA-384), name, payload. Events of firmware have no name, and their
payload is what the digest is about in ways that differ by type. Those of the guest have type
0x08000001, and their digest is computed here, not read:

    version 1   SHA-384(type, 4 bytes little-endian, ":", name, ":", payload)
    version 2   SHA-384 of {"event":name,"event_type":type,"payload":hex,"version":2}, written by
                RFC 8785

JSON: list of `imr`, `event_type`, `digest` (hex), `event`, `event_payload` (hex); `version` and
`hash_input` may be there.

Covered, once the log is replayed: names and payloads of the guest's events. Not covered: payloads
of firmware's; which program in the guest wrote an event.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any, Final

from veilrun.attest.event_logs import Event, EventLog
from veilrun.errors import DecodeError
from veilrun.wire.fields import Fields, mapping, within

RUNTIME: Final = 0x08000001
_ALGORITHM: Final = "sha384"
_DIGEST_BYTES: Final = 48
_MAX_EVENTS: Final = 4096
_RTMRS: Final = range(4)


def make_event(rtmr: int, kind: int, digest: bytes, name: bytes, payload: bytes) -> Event:
    """One event, of version 1. digest: as the log has it. Raises DecodeError."""
    if kind == RUNTIME:
        tagged = kind.to_bytes(4, "little") + b":" + name + b":" + payload
        digest = hashlib.sha384(tagged).digest()
    if rtmr not in _RTMRS or len(digest) != _DIGEST_BYTES:
        raise DecodeError(f"event log: RTMR {rtmr} with a digest of {len(digest)} bytes")
    return Event(rtmr + 1, kind, {_ALGORITHM: digest}, payload)


def log_of(events: Iterable[Event]) -> EventLog:
    """The log with these events."""
    return EventLog({_ALGORITHM: _DIGEST_BYTES}, tuple(events), is_of_tee=True)


def parse_events(text: str) -> EventLog:
    """The log in `text`, JSON."""
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DecodeError("event log is not JSON") from error
    if not isinstance(entries, list) or len(entries) > _MAX_EVENTS:
        raise DecodeError(f"event log must be a list of at most {_MAX_EVENTS} events")
    return log_of(_entry(one, f"event_log[{at}]") for at, one in enumerate(entries))


def _entry(value: Any, name: str) -> Event:
    fields = Fields(mapping(value, name), name)
    rtmr = fields.take("imr", within(_RTMRS.start, _RTMRS.stop - 1))
    kind = fields.take("event_type", within(0, 2**32 - 1))
    digest = fields.take("digest", hex_bytes, b"")
    event = fields.take("event", utf8)
    payload = fields.take("event_payload", hex_bytes)
    version = fields.take("version", within(1, 2), 1)
    fields.take("hash_input", hex_bytes, b"")
    fields.finish()
    if kind == RUNTIME and version == 2:
        body = {"event": event.decode(), "event_type": kind, "payload": payload.hex(), "version": 2}
        written = json.dumps(body, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
        digest = hashlib.sha384(written.encode()).digest()
        return Event(rtmr + 1, kind, {_ALGORITHM: digest}, payload)
    return make_event(rtmr, kind, digest, event, payload)


def utf8(value: Any, name: str) -> bytes:
    """Text, as UTF-8."""
    try:
        return str.encode(value)
    except (TypeError, UnicodeEncodeError) as error:
        raise DecodeError(f"{name} must be text", field=name) from error


def hex_bytes(value: Any, name: str) -> bytes:
    """Bytes, as hex."""
    try:
        return bytes.fromhex(value)
    except (TypeError, ValueError) as error:
        raise DecodeError(f"{name} is not hex", field=name) from error
