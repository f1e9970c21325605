"""TCG event logs: what firmware measured, in order, and the registers that it gives. Little-endian.

    first event    32 + n   register (4), type (4), SHA-1 (20), size (4), and `Spec ID Event03`:
                            platform (4), version (4), number of hashes (4), each: algorithm (2),
                            size of digest (2); vendor's data (1 + n)
    every other              register (4), type (4), number of digests (4), each: algorithm (2),
                            digest; data (4 + n)
    padding                  bytes ff, or zeros

A TPM's registers are PCR 0 to 23. The log of a TEE (ACPI table CCEL) has the same form; its first
event is of register 1, and register n + 1 is RTMR n.

Replay: a register begins as zeros (PCR 17 to 22 as ones; PCR 0 ends with the locality that an
event `StartupLocality` states), and becomes hash(register | digest) with each event, except for
events of type 3, which are not measured.

Covered: that the digests are those that were measured. Not covered: that the data beside a digest
is what was hashed; for many types of event that is not so.

Invariant: bytes give a value or `DecodeError`, in time and memory linear in their number.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from veilrun.attest.reading import Cursor
from veilrun.attest.reasons import AppraisalError, Reason
from veilrun.errors import DecodeError

MAX_BYTES: Final = 4 << 20
_NO_ACTION: Final = 3
_SIGNATURE: Final = b"Spec ID Event03\0"
_STARTUP_LOCALITY: Final = b"StartupLocality\0"
_ALGORITHMS: Final = {0x0004: "sha1", 0x000B: "sha256", 0x000C: "sha384", 0x000D: "sha512"}
_MAX_ALGORITHMS: Final = 8
_MAX_REGISTER: Final = 23
_ONES_FIRST: Final = range(17, 23)
_ENDS: Final = (b"\xff", b"\x00")


@dataclass(frozen=True, slots=True)
class Event:
    """What was measured once. digests: name of the hash -> digest."""

    register: int
    type: int
    digests: Mapping[str, bytes]
    data: bytes


@dataclass(frozen=True)
class EventLog:
    """algorithms: name of the hash -> size of its digests. is_of_tee: registers are RTMRs + 1."""

    algorithms: Mapping[str, int]
    events: tuple[Event, ...]
    is_of_tee: bool

    def replay(self, algorithm: str) -> dict[int, bytes]:
        """The registers that it gives, of those with events. Raises DecodeError."""
        if algorithm not in self.algorithms:
            raise DecodeError(f"the event log has no {algorithm} digests")
        registers: dict[int, bytes] = {}
        for event in self.events:
            if event.type == _NO_ACTION:
                continue
            value = registers.get(event.register)
            if value is None:
                value = self._first(event.register, self.algorithms[algorithm])
            registers[event.register] = extend(value, [event.digests[algorithm]], algorithm)
        return registers

    def _first(self, register: int, n_bytes: int) -> bytes:
        if self.is_of_tee:
            return bytes(n_bytes)
        if register in _ONES_FIRST:
            return b"\xff" * n_bytes
        return bytes(n_bytes - 1) + bytes([self._locality() if register == 0 else 0])

    def _locality(self) -> int:
        for event in self.events:
            if event.type == _NO_ACTION and event.data.startswith(_STARTUP_LOCALITY):
                return event.data[len(_STARTUP_LOCALITY)] if len(event.data) == 17 else 0
        return 0


def extend(register: bytes, digests: Iterable[bytes], algorithm: str) -> bytes:
    """The value of a register after these digests."""
    for digest in digests:
        register = hashlib.new(algorithm, register + digest).digest()
    return register


def parse_event_log(data: bytes) -> EventLog:
    """The log in `data`, see above."""
    if len(data) > MAX_BYTES:
        raise DecodeError(f"event log of {len(data)} bytes is over {MAX_BYTES}")
    cursor = Cursor(data, "event log")
    first_register = cursor.number(4, "first register")
    if first_register not in (0, 1) or cursor.number(4, "first type") != _NO_ACTION:
        raise DecodeError("event log: the first event does not begin a log")
    cursor.expect(bytes(20), "first digest")
    sizes = _header(cursor.sized(4, "first event"))
    end = len(data.rstrip(data[-1:])) if data[-1:] in _ENDS else len(data)
    events: list[Event] = []
    while cursor.left and not _is_padding(cursor, end, data):
        events.append(_event(cursor, sizes))
    names = {_ALGORITHMS[number]: size for number, size in sizes.items() if number in _ALGORITHMS}
    return EventLog(names, tuple(events), is_of_tee=first_register == 1)


def verify_registers(
    log: EventLog, algorithm: str, quoted: Mapping[int, bytes], check: str
) -> None:
    """Replay gives every quoted register that the log has events of, and there is one.

    Raises:
        AppraisalError: event-log.
    """
    try:
        found = log.replay(algorithm)
    except DecodeError as error:
        raise AppraisalError(Reason.EVENT_LOG, check, str(error)) from error
    if not found.keys() & quoted.keys():
        raise AppraisalError(Reason.EVENT_LOG, check, "it has no events of a quoted register")
    for number in sorted(found.keys() & quoted.keys()):
        if found[number] != quoted[number]:
            raise AppraisalError(
                Reason.EVENT_LOG,
                check,
                f"register {number} comes to {found[number].hex()}, quoted is "
                f"{quoted[number].hex()}",
            )


def _header(data: bytes) -> dict[int, int]:
    """Algorithm -> size of its digests."""
    cursor = Cursor(data, "first event of the log")
    cursor.expect(_SIGNATURE, "signature")
    cursor.take(8, "platform and version")
    n_algorithms = cursor.number(4, "number of hashes")
    if not 1 <= n_algorithms <= _MAX_ALGORITHMS:
        raise DecodeError(f"event log with {n_algorithms} hashes")
    sizes: dict[int, int] = {}
    for _ in range(n_algorithms):
        number, size = cursor.number(2, "algorithm"), cursor.number(2, "size of digest")
        name = _ALGORITHMS.get(number)
        if number in sizes or (name and hashlib.new(name).digest_size != size) or size > 64:
            raise DecodeError(f"event log: algorithm {number:04x} with digests of {size} bytes")
        sizes[number] = size
    cursor.sized(1, "vendor's data")
    cursor.finish()
    return sizes


def _event(cursor: Cursor, sizes: Mapping[int, int]) -> Event:
    register, kind = cursor.number(4, "register"), cursor.number(4, "type")
    if register > _MAX_REGISTER and kind != _NO_ACTION:
        raise DecodeError(f"event log: register {register}")
    n_digests = cursor.number(4, "number of digests")
    if n_digests != len(sizes):
        raise DecodeError(f"event log: an event with {n_digests} of {len(sizes)} digests")
    digests: dict[int, bytes] = {}
    for _ in range(n_digests):
        number = cursor.number(2, "algorithm")
        if number not in sizes or number in digests:
            raise DecodeError(f"event log: algorithm {number:04x} is unknown or there twice")
        digests[number] = cursor.take(sizes[number], "digest")
    named = {_ALGORITHMS[n]: digest for n, digest in digests.items() if n in _ALGORITHMS}
    return Event(register, kind, named, cursor.sized(4, "data"))


def _is_padding(cursor: Cursor, end: int, data: bytes) -> bool:
    """Whether nothing but padding is left. end: where the last run of equal bytes begins."""
    return end <= cursor.at and data[-1:] in _ENDS
