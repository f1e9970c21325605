"""The use ledger: which serials were used, so that none is ever used twice.

    <name>        one line per use: the serial, a space, 32 hex digits that hash all lines so far
    <name>.mark   how many lines there were, a space, the digits of the last

A mask that is used twice shows the difference of two secrets, so a serial is written here, and
is on the disk, *before* anything that its masks hide is sent. A crash in between burns it. What
counts is the ledger, never whether a file of material is still there.

Invariants. `mark` returns only once the line is on the disk, and only once per serial. One that
fails burns its serial for this process, and leaves the ledger good for others. Lines that were
changed, cut off or removed are noticed when the ledger is opened: the hash runs through all
lines, and the mark, a file of its own, says how far they went.

Not covered: ledger and mark both put back to an earlier state, as from a backup. The other
party's ledger stands against that.
"""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path
from typing import Final, final

from veilrun import atomic
from veilrun.errors import RefusedError, StorageError

_HASH_DIGITS: Final = 32
_START: Final = "0" * _HASH_DIGITS


@final
class Ledger:
    """A ledger on disk. One process at a time; any number of its threads."""

    def __init__(self, path: Path) -> None:
        """Open the ledger that `create` made.

        Raises:
            RefusedError: it was changed, cut or removed.
            StorageError: it cannot be read.
        """
        self._path = path
        self._lock = threading.Lock()
        self._used: set[int] = set()
        self._n_lines = self._n_bytes = 0  # of lines that are known to be on the disk
        self._hash = _START
        self._read()

    @staticmethod
    def create(path: Path) -> None:
        """An empty ledger, in a folder that is not in use yet."""
        atomic.write_file(path, b"", mode=0o600)
        atomic.write_file(_mark_of(path), _mark_line(0, _START), mode=0o600)

    def __contains__(self, serial: int) -> bool:
        return serial in self._used

    def __len__(self) -> int:
        return len(self._used)

    def mark(self, serial: int) -> None:
        """Write down, durably, that `serial` is used from now on.

        Raises:
            RefusedError: it was used before.
            StorageError: the disk did not take it; nothing may be sent.
        """
        with self._lock:
            if serial in self._used:
                raise RefusedError(f"serial {serial} was used before; none is used twice")
            self._used.add(serial)  # burnt, even if what follows fails
            following = _next_hash(self._hash, serial)
            line = f"{serial} {following}\n".encode()
            try:
                self._write_line(line)
                self._n_lines, self._n_bytes = self._n_lines + 1, self._n_bytes + len(line)
                self._hash = following
                self._write_mark()
            except OSError as error:
                raise StorageError(f"cannot write {self._path}: {error.strerror}") from error

    def _write_line(self, line: bytes) -> None:
        with self._path.open("r+b") as file:
            if file.seek(0, os.SEEK_END) < self._n_bytes:
                raise self._broken("it has become shorter")
            file.truncate(self._n_bytes)  # what a write that failed may have left
            file.seek(self._n_bytes)
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        sync_folder(self._path.parent)

    def _write_mark(self) -> None:
        line = _mark_line(self._n_lines, self._hash)
        atomic.write_file(_mark_of(self._path), line, mode=0o600)
        sync_folder(self._path.parent)

    def _read(self) -> None:
        try:
            content = self._path.read_bytes()
            mark = _mark_of(self._path).read_bytes()
        except FileNotFoundError as error:
            raise self._broken(f"{error.filename} is missing") from error
        except OSError as error:
            raise StorageError(f"cannot read {self._path}: {error.strerror}") from error
        whole, _, torn = content.rpartition(b"\n")
        lines = whole.split(b"\n") if whole else []
        hashes = [_START]
        for number, line in enumerate(lines, start=1):
            serial = _serial_in(line)
            if serial is None or serial in self._used:
                raise self._broken(f"line {number} is no entry")
            hashes.append(_next_hash(hashes[-1], serial))
            if line != f"{serial} {hashes[-1]}".encode():
                raise self._broken(f"line {number} does not follow from those before it")
            self._used.add(serial)
        if mark not in {_mark_line(n, digits) for n, digits in enumerate(hashes)}:
            raise self._broken(f"{len(lines)} entries are left, and its mark names others")
        self._n_lines, self._n_bytes = len(lines), len(content) - len(torn)
        self._hash = hashes[-1]
        if torn:  # a crash while a line was written: that serial was not used, see `mark`
            atomic.write_file(self._path, content[: self._n_bytes], mode=0o600)
        if mark != _mark_line(len(lines), self._hash):
            self._write_mark()

    def _broken(self, why: str) -> RefusedError:
        return RefusedError(
            f"the use ledger {self._path} was tampered with ({why}), so it is not known which "
            "serials were used; remove its folder on this machine, and let the dealer start a "
            "new run (veilrun mpc deal --new-run)"
        )


def sync_folder(folder: Path) -> None:
    """Make what was created, renamed or removed in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _mark_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.mark")


def _mark_line(n_lines: int, digits: str) -> bytes:
    return f"{n_lines} {digits}\n".encode()


def _next_hash(before: str, serial: int) -> str:
    body = f"veilrun mpc ledger {before} {serial}".encode()
    return hashlib.sha256(body).hexdigest()[:_HASH_DIGITS]


def _serial_in(line: bytes) -> int | None:
    word = line.partition(b" ")[0]
    return int(word) if word.isdigit() and len(word) <= 19 else None
