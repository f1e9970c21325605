"""TCG event logs: recorded ones, of TPMs and of TEEs, and what is wrong with others."""

from __future__ import annotations

import hashlib
import random

import attest_rig
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from veilrun.attest.event_logs import MAX_BYTES, extend, parse_event_log, verify_registers
from veilrun.attest.reasons import AppraisalError, Reason
from veilrun.errors import DecodeError, VerificationError

NO_ACTION = 3


def header(register: int = 0, algorithms: tuple[tuple[int, int], ...] = ((11, 32),)) -> bytes:
    body = b"Spec ID Event03\0" + bytes(8) + len(algorithms).to_bytes(4, "little")
    for number, size in algorithms:
        body += number.to_bytes(2, "little") + size.to_bytes(2, "little")
    body += b"\0"
    start = register.to_bytes(4, "little") + NO_ACTION.to_bytes(4, "little") + bytes(20)
    return start + len(body).to_bytes(4, "little") + body


def event(register: int, digest: bytes, data: bytes = b"", kind: int = 1) -> bytes:
    start = b"".join(one.to_bytes(4, "little") for one in (register, kind, 1))
    return start + b"\x0b\0" + digest + len(data).to_bytes(4, "little") + data


ONE, TWO = hashlib.sha256(b"one").digest(), hashlib.sha256(b"two").digest()


def test_replay_of_a_log_of_ours():
    log = parse_event_log(header() + event(4, ONE, b"x") + event(4, TWO) + event(17, ONE))
    assert log.replay("sha256") == {
        4: hashlib.sha256(hashlib.sha256(bytes(32) + ONE).digest() + TWO).digest(),
        17: extend(b"\xff" * 32, [ONE], "sha256"),
    }
    assert not log.is_of_tee


def test_the_locality_that_a_machine_starts_in():
    said = event(0, bytes(32), b"StartupLocality\0\x03", NO_ACTION)
    log = parse_event_log(header() + said + event(0, ONE))
    assert log.replay("sha256") == {0: extend(bytes(31) + b"\3", [ONE], "sha256")}


def test_registers_of_a_tee_begin_as_zeros():
    log = parse_event_log(header(1) + event(17, ONE))
    assert log.is_of_tee
    assert log.replay("sha256") == {17: extend(bytes(32), [ONE], "sha256")}


@pytest.mark.parametrize("padding", [b"", b"\0" * 100, b"\xff" * 100])
def test_padding_ends_a_log(padding):
    for data in (b"x", b"ends in \0\0\0\0\0\0\0\0\0", b"ends in " + b"\xff" * 30):
        log = parse_event_log(header() + event(1, ONE, data) + padding)
        assert [one.data for one in log.events] == [data]


@pytest.mark.parametrize(
    "quote",
    [
        ("tdx-ccel-live.bin", "tdx-v4-quote-b0c06f-live.bin"),
        ("tdx-ccel-cos113.bin", "tdx-v4-quote-00806f-cos113.bin"),
    ],
    ids=lambda names: names[0],
)
def test_recorded_logs_of_tees(quote):
    log = parse_event_log(attest_rig.data(f"sgx-tdx/{quote[0]}"))
    data = attest_rig.data(f"sgx-tdx/{quote[1]}")
    rtmrs = {n + 1: data[48 + 328 + 48 * n :][:48] for n in range(4)}
    verify_registers(log, "sha384", rtmrs, "event log")
    other = parse_event_log(attest_rig.data("sgx-tdx/tdx-ccel-other-boot.bin"))
    with pytest.raises(AppraisalError) as refusal:
        verify_registers(other, "sha384", rtmrs, "event log")
    assert refusal.value.reason is Reason.EVENT_LOG


def test_what_cannot_be_compared_is_refused():
    log = parse_event_log(header() + event(4, ONE))
    for algorithm, quoted in (("sha384", {4: bytes(48)}), ("sha256", {5: bytes(32)})):
        with pytest.raises(AppraisalError):
            verify_registers(log, algorithm, quoted, "event log")


@pytest.mark.parametrize(
    "log",
    [
        b"",
        header()[:-1],
        b"\2" + header()[1:],
        header(algorithms=()),
        header(algorithms=((11, 32),) * 2),
        header(algorithms=((11, 20),)),
        header(algorithms=((99, 65),)),
        header() + event(24, ONE),
        header() + event(1, ONE)[:-1],
        header() + event(1, ONE).replace(b"\x0b\0" + ONE, b"\x04\0" + ONE),
        header() + event(1, ONE).replace(b"\1\0\0\0\x0b", b"\2\0\0\0\x0b"),
        bytes(MAX_BYTES + 1),
    ],
    ids=[str(n) for n in range(12)],
)
def test_malformed(log):
    with pytest.raises(DecodeError):
        parse_event_log(log)


def test_every_digest_of_a_recorded_log_counts():
    """Flip a byte of each digest of the bank: replay gives something else."""
    data = attest_rig.data("tpm/tcg-eventlog-dstack.bin")
    log = parse_event_log(data)
    quoted = log.replay("sha256")
    for one in (one for one in log.events if one.type != NO_ACTION):
        at = data.index(one.digests["sha256"])
        damaged = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        with pytest.raises(VerificationError):
            verify_registers(parse_event_log(damaged), "sha256", quoted, "event log")


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(["flip", "cut", "insert"]))
def test_damage_gives_an_error_or_a_log(seed, how):
    data = bytearray(attest_rig.data("tpm/tcg-eventlog-dstack.bin"))
    noise = random.Random(seed)
    at = noise.randrange(len(data))
    if how == "flip":
        data[at] ^= noise.randrange(1, 256)
    elif how == "cut":
        del data[at : at + noise.randrange(1, 64)]
    else:
        data[at:at] = noise.randbytes(noise.randrange(1, 64))
    try:
        parse_event_log(bytes(data)).replay("sha256")
    except DecodeError:
        pass
