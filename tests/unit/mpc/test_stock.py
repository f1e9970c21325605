"""A party's store: no serial twice, whatever happens to the files; damage is named."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from veilrun import atomic
from veilrun.errors import DamagedError, RefusedError, StorageError, VerificationError
from veilrun.mpc import parcels, stock, wire
from veilrun.mpc.ledger import Ledger
from veilrun.mpc.parcels import Arrival, Writer
from veilrun.mpc.stock import Store
from veilrun.mpc.wire import CHUNK_BYTES, SETUP, Welcome

WELCOME = Welcome(wire.VERSION, b"\x01" * 32, b"\x02" * 16, b"\x03" * 32)
CONTENT = np.random.default_rng(0).integers(0, 256, 2 * CHUNK_BYTES + 77, np.uint8).tobytes()


def put(store: Store, name: str, content: bytes = CONTENT, n_tokens: int = 4, **more) -> Path:
    """A parcel as it is after it was fetched."""
    stem = store.stem(name)
    facts = {"digest": WELCOME.digest, "run": WELCOME.run, "role": store.role, "parcel": name}
    with Writer(stem) as writer:
        for start in range(0, len(content), 700_001):
            writer.write(memoryview(content)[start : start + 700_001])
        writer.finish(**{**facts, "n_tokens": n_tokens, **more})
    return stem.with_name(stem.name + parcels.PARCEL)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.meet(tmp_path, "P1", WELCOME)


def again(store: Store) -> Store:
    """The same store after a restart."""
    return Store(store.folder, store.role)


# --- the ledger ---------------------------------------------------------------------------


def test_a_serial_is_used_once(store: Store) -> None:
    store.use(5)
    for later in (store, again(store)):
        with pytest.raises(RefusedError, match="serial 5 was used before"):
            later.use(5)
        assert 5 in later.ledger
    again(store).use(6)
    assert len(again(store).ledger) == 2


def test_copying_the_material_back_is_of_no_use(store: Store, tmp_path: Path) -> None:
    path = put(store, "5")
    kept = tmp_path / "kept"
    shutil.copytree(path.parent, kept)
    store.use(5)
    store.discard(5)
    assert not path.exists() and store.in_stock() == {}
    for name in os.listdir(kept):
        shutil.copy(kept / name, path.parent / name)
    with pytest.raises(RefusedError, match="serial 5 was used"):
        store.read("5", 4)
    assert store.in_stock() == {}
    later = again(store)
    assert not path.exists(), "a used serial's material is removed at the next start"
    with pytest.raises(RefusedError):
        later.use(5)


def test_a_crash_after_the_ledger_burns_the_serial(store: Store) -> None:
    put(store, "5")
    store.use(5)  # and the process dies: the material is still there
    assert again(store).in_stock() == {}


def test_a_line_torn_by_a_crash_was_not_used(store: Store) -> None:
    store.use(5)
    path = store.folder / "ledger"
    before = path.read_bytes()
    path.write_bytes(before + b"6 0123")
    later = again(store)
    assert 6 not in later.ledger and path.read_bytes() == before
    later.use(6)
    assert 6 in again(later).ledger


def test_a_crash_between_line_and_mark_burns_the_serial(store: Store) -> None:
    store.use(5)
    mark = store.folder / "ledger.mark"
    before = mark.read_bytes()
    store.use(6)
    mark.write_bytes(before)
    later = again(store)
    assert 6 in later.ledger and mark.read_bytes() != before


def cut_last(path: Path) -> None:
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))


def cut_byte(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def drop_first(path: Path) -> None:
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[1:]))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def repeat(path: Path) -> None:
    path.write_bytes(path.read_bytes() * 2)


@pytest.mark.parametrize("file", ["ledger", "ledger.mark"])
@pytest.mark.parametrize("harm", [cut_last, cut_byte, drop_first, flip, empty, repeat, Path.unlink])
def test_a_ledger_that_was_changed_is_noticed(store: Store, file: str, harm) -> None:
    for serial in (5, 6, 7):
        store.use(serial)
    harm(store.folder / file)
    with pytest.raises(RefusedError, match="ledger"):
        again(store)


def test_every_flipped_bit_of_the_ledger_is_noticed(store: Store) -> None:
    store.use(5)
    store.use(61)
    path = store.folder / "ledger"
    good = path.read_bytes()
    for bit in range(8 * len(good)):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bad)
        with pytest.raises(RefusedError):
            Ledger(path)


def test_a_disk_that_does_not_take_the_line(store: Store, monkeypatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(StorageError, match="No space"):
        patched.setattr(os, "fsync", full)
        store.use(5)
    with pytest.raises(RefusedError):  # it may be on the disk, so it is burnt
        store.use(5)


def no_sync(descriptor: int) -> None:
    raise OSError(28, "No space left on device")


def no_open(path: Path, *args: object, **options: object) -> None:
    raise OSError(24, "Too many open files")


def no_mark(path: Path, content: bytes, mode: int) -> None:
    raise StorageError("disk full")


FAILURES = {
    "the line is not synced": (os, "fsync", no_sync),
    "the file is not opened": (Path, "open", no_open),
    "the mark is not written": (atomic, "write_file", no_mark),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_ledger_outlives_a_write_that_failed(store: Store, failure: str, monkeypatch) -> None:
    store.use(1)
    for serial in (2, 3):
        with monkeypatch.context() as patched, pytest.raises(StorageError):
            patched.setattr(*FAILURES[failure])
            store.use(serial)
    store.use(4)
    for later in (store, again(store)):
        for serial in (1, 4):
            with pytest.raises(RefusedError, match="was used before"):
                later.use(serial)
    last = again(store)
    last.use(5)
    assert {1, 4, 5} == {serial for serial in (1, 4, 5) if serial in again(last).ledger}


def test_half_a_line_that_a_full_disk_left_is_cut_before_the_next(store: Store) -> None:
    store.use(1)
    path = store.folder / "ledger"
    before = path.read_bytes()
    path.write_bytes(before + b"2 0123")
    store.use(3)
    assert path.read_bytes().startswith(before + b"3 ")
    assert 3 in again(store).ledger


def test_the_line_is_on_the_disk_before_use_returns(store: Store, monkeypatch) -> None:
    synced: list[bytes] = []
    real = os.fsync

    def watch(descriptor: int) -> None:
        real(descriptor)
        path = Path(f"/proc/self/fd/{descriptor}").resolve()
        synced.append(path.read_bytes() if path.is_file() else b"folder")

    monkeypatch.setattr(os, "fsync", watch)
    store.use(5)
    line = (store.folder / "ledger").read_bytes()
    assert line.startswith(b"5 ")
    assert synced[:2] == [line, b"folder"]


# --- material -------------------------------------------------------------------------------


def test_material_is_what_was_put_there(store: Store) -> None:
    put(store, "5")
    put(store, "6", b"short", n_tokens=9)
    assert store.in_stock() == {5: 4, 6: 9}
    assert store.read("5", 4) == CONTENT
    assert again(store).read("6", 9) == b"short"


@pytest.mark.parametrize("place", [0, CHUNK_BYTES - 1, CHUNK_BYTES, len(CONTENT) - 1])
def test_a_flipped_bit_is_named(store: Store, place: int) -> None:
    path = put(store, "5")
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(content)
    with pytest.raises(DamagedError, match=rf"5\.parcel is damaged in chunk {place >> 20} of 3"):
        store.read("5", 4)


def test_a_cut_file_is_named(store: Store) -> None:
    path = put(store, "5")
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(DamagedError, match=rf"5\.parcel has {len(CONTENT) - 1} bytes"):
        store.read("5", 4)
    path.unlink()
    with pytest.raises(DamagedError, match=r"5\.parcel"):
        store.read("5", 4)


@pytest.mark.parametrize(
    "other",
    [
        {"digest": b"\x09" * 32},
        {"run": b"\x09" * 16},
        {"role": "P2"},
        {"parcel": "6"},
        {"n_tokens": 5},
    ],
)
def test_material_of_something_else_is_named(store: Store, other: dict) -> None:
    put(store, "5", **other)
    with pytest.raises(DamagedError, match="parcel 5 is"):
        store.read("5", 4)


def test_a_damaged_manifest_is_named(store: Store) -> None:
    path = put(store, "5").with_suffix(parcels.MANIFEST)
    for content in (b"", path.read_bytes()[:-1], wire.encode(wire.Go())):
        path.write_bytes(content)
        with pytest.raises(DamagedError, match=r"5\.manifest"):
            store.read("5", 4)
        assert store.in_stock() == {}


def test_only_the_owner_can_read(store: Store) -> None:
    put(store, "5")
    put(store, SETUP, n_tokens=0)
    files = [path for path in store.folder.rglob("*") if path.is_file()]
    assert len(files) == 7
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}


def test_nothing_is_left_of_what_is_not_finished(store: Store) -> None:
    with Writer(store.stem("5")) as writer:
        writer.write(CONTENT)
    assert list((store.folder / "stock").iterdir()) == []


# --- what is on its way ---------------------------------------------------------------------


def chunks() -> list[bytes]:
    return [CONTENT[i : i + CHUNK_BYTES] for i in range(0, len(CONTENT), CHUNK_BYTES)]


@pytest.fixture
def manifest(tmp_path: Path) -> wire.Manifest:
    dealer = Store.meet(tmp_path / "dealer", "P1", WELCOME)
    put(dealer, "5")
    return parcels.load_manifest(dealer.stem("5"))


def test_an_interrupted_fetch_goes_on(store: Store, manifest: wire.Manifest) -> None:
    with Arrival(store.stem("5"), manifest) as first:
        assert first.missing() == [0, 1, 2]
        first.put(1, chunks()[1])
    later = again(store)
    assert later.in_stock() == {} and not later.has("5")
    with Arrival(later.stem("5"), manifest) as second:
        assert second.missing() == [0, 2]
        second.put(0, chunks()[0])
        second.put(2, chunks()[2])
        second.finish()
    assert later.read("5", 4) == CONTENT


def test_what_was_damaged_on_the_disk_is_missing(store: Store, manifest: wire.Manifest) -> None:
    with Arrival(store.stem("5"), manifest) as first:
        for index, chunk in enumerate(chunks()):
            first.put(index, chunk)
    part = store.stem("5").with_suffix(parcels.PART)
    content = bytearray(part.read_bytes())
    content[CHUNK_BYTES + 5] ^= 1
    part.write_bytes(content)
    with Arrival(store.stem("5"), manifest) as second:
        assert second.missing() == [1]
        with pytest.raises(DamagedError, match="chunk 1"):
            second.finish()
    assert not store.has("5")


def test_a_chunk_that_is_another_is_not_taken(store: Store, manifest: wire.Manifest) -> None:
    with Arrival(store.stem("5"), manifest) as arrival:
        for bad in (chunks()[1], chunks()[0][:-1], b""):
            with pytest.raises(VerificationError, match="chunk 0 of 3 of parcel 5"):
                arrival.put(0, bad)
        assert arrival.missing() == [0, 1, 2]


# --- the state folder -----------------------------------------------------------------------


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with stock.locked(tmp_path / "state"):
        with pytest.raises(RefusedError, match="another process"):
            with stock.locked(tmp_path / "state"):
                pass
    with stock.locked(tmp_path / "state"):
        pass


def test_the_run_met_last_is_found(tmp_path: Path) -> None:
    assert Store.latest(tmp_path, "P1") is None
    Store.meet(tmp_path, "P1", WELCOME)
    second = Welcome(wire.VERSION, WELCOME.digest, b"\x07" * 16, b"\x08" * 32)
    Store.meet(tmp_path, "P1", second)
    latest = Store.latest(tmp_path, "P1")
    assert latest is not None and latest.welcome.run == second.run


def test_runs_do_not_share_a_ledger(tmp_path: Path) -> None:
    Store.meet(tmp_path, "P1", WELCOME).use(5)
    second = Welcome(wire.VERSION, WELCOME.digest, b"\x07" * 16, b"\x08" * 32)
    Store.meet(tmp_path, "P1", second).use(5)
    assert 5 in Store.meet(tmp_path, "P1", WELCOME).ledger


def test_another_key_for_the_same_run_is_refused(tmp_path: Path) -> None:
    Store.meet(tmp_path, "P1", WELCOME)
    other = Welcome(wire.VERSION, WELCOME.digest, WELCOME.run, b"\x08" * 32)
    with pytest.raises(RefusedError, match="another key"):
        Store.meet(tmp_path, "P1", other)


def test_no_key_is_shown(store: Store) -> None:
    assert "\\x03" not in repr(store) + repr(store.welcome)
