"""What the dealer keeps: a serial is given out once, whatever happens in between."""

from __future__ import annotations

from pathlib import Path

import pytest

from veilrun.errors import DamagedError, PeerError, RefusedError
from veilrun.mpc import parcels
from veilrun.mpc.roles.outbox import PARTIES, Outbox

DIGEST = b"\x01" * 32


def put(outbox: Outbox, n_tokens: int) -> int:
    serial = outbox.next_serial()
    with outbox.writers(str(serial)) as writers:
        for writer in writers:
            writer.write(b"material")
        outbox.finish(writers, str(serial), n_tokens)
    return serial


def test_serials_go_on_after_a_restart(tmp_path: Path) -> None:
    given = []
    for _ in range(3):
        outbox = Outbox(tmp_path, DIGEST)
        given += [outbox.next_serial(), outbox.next_serial()]
    assert given == [1, 2, 3, 4, 5, 6]


def test_a_crash_while_dealing_skips_the_serial(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path, DIGEST)
    writers = outbox.writers(str(outbox.next_serial()))
    first, _ = writers.__enter__()
    first.write(b"half")  # and the process dies
    later = Outbox(tmp_path, DIGEST)
    assert later.waiting("P1") == {} == later.waiting("P2")
    assert list(tmp_path.rglob("*.writing")) == []
    assert put(later, 4) == 2
    assert later.waiting("P1") == {2: 4} == later.waiting("P2")
    del writers


def test_keys_and_counter_go_together(tmp_path: Path) -> None:
    first = Outbox(tmp_path, DIGEST)
    put(first, 4)
    assert Outbox(tmp_path, DIGEST).keys == first.keys
    second = Outbox(tmp_path, DIGEST, new_run=True)
    assert second.run != first.run
    assert not set(second.keys) & set(first.keys)
    assert second.waiting("P1") == {} and second.next_serial() == 1
    other = Outbox(tmp_path, b"\x02" * 32)
    assert not set(other.keys) & set(second.keys)


@pytest.mark.parametrize("content", [b"", b"x", b"-"])
def test_a_damaged_counter_gives_no_serial(tmp_path: Path, content: bytes) -> None:
    outbox = Outbox(tmp_path, DIGEST)
    (path,) = tmp_path.rglob("counter")
    path.write_bytes(content)
    with pytest.raises(DamagedError, match="--new-run"):
        outbox.next_serial()


def test_a_parcel_is_gone_once_it_is_confirmed(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path, DIGEST)
    serial = put(outbox, 4)
    outbox.confirmed(str(serial), "P1")
    assert outbox.waiting("P1") == {} and outbox.waiting("P2") == {serial: 4}
    with pytest.raises(PeerError, match="P1 asks for parcel 1"):
        outbox.manifest(str(serial), "P1")
    assert outbox.manifest(str(serial), "P2").n_tokens == 4
    outbox.confirmed(str(serial), "P2")
    assert list(tmp_path.rglob(f"*{parcels.PARCEL}")) == []


def test_questions_are_remembered(tmp_path: Path) -> None:
    Outbox(tmp_path, DIGEST).answered.mark(7)
    with pytest.raises(RefusedError):
        Outbox(tmp_path, DIGEST).answered.mark(7)


def test_keys_are_the_owners_only(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path, DIGEST)
    put(outbox, 4)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 9
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    for role in PARTIES:
        key = outbox.welcomes[role].key
        assert key.hex() not in repr(outbox) + repr(outbox.welcomes)
