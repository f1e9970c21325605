"""What the dealer keeps of one model: the run's keys, the counter of serials, parcels to fetch.

    STATE/models/<digest>/
        run.P1, run.P2        the run and each party's key: `wire.Welcome`, mode 0600
        counter               the next serial
        answered              ledger of the serials whose embedding question was answered
        setup.P1.*, .P2.*     set-up parcels
        box/<serial>.P1.*     material that waits to be fetched; gone once it is confirmed

Invariant. A serial is dealt once: the counter is on the disk before dealing begins, and keys
and counter live and die together, so no stream of a key is ever read for two dealings.

Not covered: a folder put back to an earlier state, as from a backup. It deals old serials again.
At the same length that gives the same bytes, of which the parties' ledgers let nobody use any
twice; at another length the streams are others (`online.stream_of`). What is left: a party whose
ledger was put back too, and another version of this software, which may deal something else under
the same streams. So start a new run after a restore.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final, final

from veilrun import atomic
from veilrun.errors import DamagedError, DecodeError, PeerError, StorageError
from veilrun.mpc import parcels, wire
from veilrun.mpc.ledger import Ledger, sync_folder
from veilrun.mpc.parcels import Writer
from veilrun.mpc.wire import KEY_BYTES, RUN_BYTES, SETUP, VERSION, Welcome

PARTIES: Final = ("P1", "P2")
_MAX_WAITING: Final = 1024


@final
class Outbox:
    """The dealer's folder of one model."""

    def __init__(self, state: Path, digest: bytes, *, new_run: bool = False) -> None:
        """Open the folder, made on the first call.

        new_run: forget keys, counter and parcels, and begin again under new keys.

        Raises:
            RefusedError, DamagedError: the folder is damaged.
            StorageError: it cannot be written.
        """
        self._folder = state / "models" / digest.hex()[:32]
        if new_run and self._folder.exists():
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(self._folder)
        if not self._folder.exists():
            _make(self._folder, digest)
        self.welcomes = {role: _load_welcome(self._folder, role, digest) for role in PARTIES}
        self.answered = Ledger(self._folder / "answered")
        self._box = self._folder / "box"
        self._lock = threading.Lock()
        for leftover in self._folder.rglob("*.writing"):
            leftover.unlink(missing_ok=True)

    def __repr__(self) -> str:
        return f"Outbox({self._folder.name})"

    @property
    def digest(self) -> bytes:
        return self.welcomes["P1"].digest

    @property
    def run(self) -> bytes:
        return self.welcomes["P1"].run

    @property
    def keys(self) -> tuple[bytes, bytes]:
        """k_01 and k_02. Secret."""
        return self.welcomes["P1"].key, self.welcomes["P2"].key

    def next_serial(self) -> int:
        """A serial that was never given out, and never will be again."""
        path = self._folder / "counter"
        with self._lock:
            try:
                serial = int(path.read_text("ascii"))
            except (OSError, ValueError) as error:
                raise DamagedError(
                    f"{path} is damaged; start a new run (veilrun mpc deal --new-run)"
                ) from error
            atomic.write_file(path, f"{serial + 1}\n".encode(), mode=0o600)
            sync_folder(self._folder)
        return serial

    @contextlib.contextmanager
    def writers(self, parcel: str) -> Iterator[tuple[Writer, Writer]]:
        """To write both parties' parcels of this name; see `finish`."""
        self._check_room()
        with Writer(self.stem(parcel, "P1")) as first, Writer(self.stem(parcel, "P2")) as second:
            yield first, second

    def finish(self, writers: tuple[Writer, Writer], parcel: str, n_tokens: int) -> None:
        """Both are written: they can be fetched from now on, party 2's first."""
        for role, writer in sorted(zip(PARTIES, writers, strict=True), reverse=True):
            writer.finish(
                digest=self.digest, run=self.run, role=role, parcel=parcel, n_tokens=n_tokens
            )

    def stem(self, parcel: str, role: str) -> Path:
        """Where a party's parcel lies, without its suffix."""
        folder = self._folder if parcel == SETUP else self._box
        return folder / f"{parcel}.{role}"

    def has(self, parcel: str, role: str) -> bool:
        """Whether a parcel waits for this party."""
        stem = self.stem(parcel, role)
        return stem.with_name(stem.name + parcels.MANIFEST).exists()

    def waiting(self, role: str) -> dict[int, int]:
        """Material that waits for a party: serial -> length."""
        result = {}
        for name in parcels.stems(self._box, f".{role}{parcels.MANIFEST}"):
            if name.isascii() and name.isdigit():
                with contextlib.suppress(DamagedError):
                    result[int(name)] = parcels.load_manifest(self.stem(name, role)).n_tokens
        return dict(sorted(result.items()))

    def confirmed(self, parcel: str, role: str) -> None:
        """A party has its parcel: ours goes, unless it is the set-up, which others may want."""
        if parcel != SETUP:
            parcels.remove(self.stem(parcel, role))

    def manifest(self, parcel: str, role: str) -> wire.Manifest:
        """Of a parcel that waits.

        Raises:
            PeerError: none of that name does.
        """
        if not self.has(parcel, role):
            raise PeerError(f"{role} asks for parcel {parcel}, which is not (or no longer) here")
        return parcels.load_manifest(self.stem(parcel, role))

    def _check_room(self) -> None:
        n_waiting = len(parcels.stems(self._box, parcels.MANIFEST))
        if n_waiting >= 2 * _MAX_WAITING:
            raise StorageError(f"{n_waiting} parcels wait to be fetched; fetch those first")


def _make(folder: Path, digest: bytes) -> None:
    run = os.urandom(RUN_BYTES)
    with atomic.new_folder(folder) as new:
        (new / "box").mkdir(mode=0o700)
        for role in PARTIES:
            welcome = Welcome(VERSION, digest, run, os.urandom(KEY_BYTES))
            atomic.write_file(new / f"run.{role}", wire.encode(welcome), mode=0o600)
        atomic.write_file(new / "counter", b"1\n", mode=0o600)
        Ledger.create(new / "answered")


def _load_welcome(folder: Path, role: str, digest: bytes) -> Welcome:
    path = folder / f"run.{role}"
    try:
        message = wire.decode(path.read_bytes())
    except (OSError, DecodeError) as error:
        raise DamagedError(
            f"{path} cannot be read ({error}); start a new run (veilrun mpc deal --new-run)"
        ) from error
    if not isinstance(message, Welcome) or message.digest != digest:
        raise DamagedError(f"{path} is of another model")
    return message
