"""A party's store of one run: its key, its part of the model, material in stock, and the ledger.

    STATE/lock                      held while a process works on this state
    STATE/current                   the folder of the run met last
    STATE/runs/<digest>-<run>/
        welcome                     what the dealer said first, key included: `wire.Welcome`
        setup.*                     the set-up parcel
        ledger, ledger.mark         the serials used, see `ledger`
        stock/<serial>.*            material parcels, and what is left of interrupted fetches

Invariants. A run's folder appears whole, with its ledger, so a ledger that is missing was
removed. Material in stock was checked chunk by chunk, belongs to this run and party, and was
never used; `use` makes it used, durably, before it returns. All files are mode 0600.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final, final

from veilrun import atomic
from veilrun.errors import DamagedError, DecodeError, RefusedError, StorageError
from veilrun.mpc import parcels, wire
from veilrun.mpc.ledger import Ledger
from veilrun.mpc.wire import SETUP, Manifest, Welcome

_CURRENT: Final = "current"
_RUNS: Final = "runs"
_LEDGER: Final = "ledger"
_WELCOME: Final = "welcome"
_STOCK: Final = "stock"


@contextlib.contextmanager
def locked(state: Path) -> Iterator[None]:
    """Hold a state folder, made where it is missing, for this process alone.

    Raises:
        RefusedError: another process holds it.
        StorageError: it cannot be written.
    """
    try:
        state.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(state / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise StorageError(f"cannot use {state}: {error.strerror}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RefusedError(
                f"another process works with {state}; one state serves one process at a time"
            ) from error
        yield
    finally:
        os.close(descriptor)


@final
class Store:
    """One run's folder at a party. role: P1 or P2."""

    def __init__(self, folder: Path, role: str) -> None:
        """Open a folder that `meet` made.

        Raises:
            RefusedError: the ledger was tampered with.
            DamagedError: what the dealer said first is damaged.
        """
        self.role = role
        self.folder = folder
        self.welcome = _load_welcome(folder / _WELCOME)
        self.ledger = Ledger(folder / _LEDGER)
        for serial in self._serials(parcels.MANIFEST) + self._serials(parcels.PARCEL):
            if serial in self.ledger:
                parcels.remove(self.stem(str(serial)))

    def __repr__(self) -> str:
        return f"Store({self.folder.name}, {self.role})"

    @staticmethod
    def meet(state: Path, role: str, welcome: Welcome) -> Store:
        """The store of the run that the dealer has just named; a new one, where it is new.

        Raises:
            RefusedError: the dealer gives another key than before, or the ledger is broken.
            StorageError: the disk is full.
        """
        folder = _folder(state, welcome)
        if not folder.exists():
            with atomic.new_folder(folder) as new:
                (new / _STOCK).mkdir(mode=0o700)
                atomic.write_file(new / _WELCOME, wire.encode(welcome), mode=0o600)
                Ledger.create(new / _LEDGER)
        store = Store(folder, role)
        if wire.encode(store.welcome) != wire.encode(welcome):
            raise RefusedError(
                "the dealer gives another key for a run it has named before; its state was "
                "mixed up: let it start a new run (veilrun mpc deal --new-run)"
            )
        atomic.write_file(state / _CURRENT, folder.name.encode(), mode=0o600)
        return store

    @staticmethod
    def latest(state: Path, role: str) -> Store | None:
        """The store of the run met last, for when the dealer cannot be reached."""
        try:
            name = (state / _CURRENT).read_text("ascii").strip()
        except (OSError, UnicodeDecodeError):
            return None
        folder = state / _RUNS / Path(name).name
        return Store(folder, role) if folder.is_dir() else None

    def stem(self, parcel: str) -> Path:
        """Where a parcel lies, without its suffix."""
        return self.folder / SETUP if parcel == SETUP else self.folder / _STOCK / parcel

    def has(self, parcel: str) -> bool:
        """Whether a parcel is here, whole."""
        stem = self.stem(parcel)
        return stem.with_name(stem.name + parcels.PARCEL).exists()

    def is_spent(self, parcel: str) -> bool:
        """Whether a parcel is material that was used."""
        return parcel != SETUP and int(parcel) in self.ledger

    def check(self, manifest: Manifest, parcel: str) -> str | None:
        """What is wrong with a manifest that should be this parcel's, or None."""
        if (manifest.digest, manifest.run) != (self.welcome.digest, self.welcome.run):
            return f"parcel {parcel} is of another model or another run"
        if manifest.role != self.role:
            return f"parcel {parcel} is {manifest.role}'s"
        if manifest.parcel != parcel or (manifest.n_tokens == 0) != (parcel == SETUP):
            return f"parcel {parcel} is parcel {manifest.parcel}, renamed"
        return None

    def in_stock(self) -> dict[int, int]:
        """Unused material: serial -> length, oldest first."""
        result = {}
        for serial in sorted(self._serials(parcels.PARCEL)):
            with contextlib.suppress(DamagedError):  # said when it is asked for by its serial
                manifest = parcels.load_manifest(self.stem(str(serial)))
                if serial not in self.ledger:
                    result[serial] = manifest.n_tokens
        return result

    def read(self, parcel: str, n_tokens: int = 0) -> bytes:
        """A parcel's bytes, checked.

        Raises:
            RefusedError: the serial was used.
            DamagedError: it is damaged, or of another model, run, party or length.
        """
        if self.is_spent(parcel):
            raise RefusedError(f"serial {parcel} was used before; none is used twice")
        stem = self.stem(parcel)
        manifest = parcels.load_manifest(stem)
        wrong = self.check(manifest, parcel)
        if wrong is None and manifest.n_tokens != n_tokens:
            wrong = f"parcel {parcel} is for {manifest.n_tokens} tokens, not {n_tokens}"
        if wrong is not None:
            raise DamagedError(f"{stem}{parcels.PARCEL}: {wrong}")
        return parcels.read(stem)

    def use(self, serial: int) -> None:
        """Write down that a serial is used from now on; only then may anything of it be sent.

        Raises:
            RefusedError: it was used before.
            StorageError: the disk did not take it.
        """
        self.ledger.mark(serial)

    def discard(self, serial: int) -> None:
        """Never use this serial, and remove its material."""
        if serial not in self.ledger:
            self.ledger.mark(serial)
        parcels.remove(self.stem(str(serial)))

    def _serials(self, suffix: str) -> list[int]:
        names = parcels.stems(self.folder / _STOCK, suffix)
        return [int(name) for name in names if name.isascii() and name.isdigit()]


def _folder(state: Path, welcome: Welcome) -> Path:
    return state / _RUNS / f"{welcome.digest.hex()[:16]}-{welcome.run.hex()[:16]}"


def _load_welcome(path: Path) -> Welcome:
    try:
        message = wire.decode(path.read_bytes())
    except (OSError, DecodeError) as error:
        raise DamagedError(f"{path} cannot be read: {error}") from error
    if not isinstance(message, Welcome):
        raise DamagedError(f"{path} is not what a dealer says first")
    return message
