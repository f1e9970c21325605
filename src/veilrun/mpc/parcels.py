"""Parcels: what the dealer hands a party, as files that can be fetched piece by piece.

    <stem>.parcel     the bytes
    <stem>.manifest   what they are, and SHA-256 of each MiB: one frame, `wire.Manifest`
    <stem>.part       a parcel on its way: as long as the parcel, some chunks not there yet

Invariants. A `.manifest` appears after its `.parcel` is whole, at the dealer; a `.parcel`
appears only after each chunk was checked against the manifest, at a party. What is read is
checked again, so damage at rest is an error that names the parcel and the chunk.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import IO, Final, Self, final

import numpy as np

from veilrun import atomic
from veilrun.errors import DamagedError, DecodeError, StorageError, VerificationError
from veilrun.mpc import wire
from veilrun.mpc.ledger import sync_folder
from veilrun.mpc.wire import CHUNK_BYTES, Manifest

PARCEL: Final = ".parcel"
MANIFEST: Final = ".manifest"
PART: Final = ".part"


@final
class Writer:
    """Writes a parcel piece by piece; it appears, with its manifest, when `finish` is called.

    Used in a `with` block; without `finish` nothing is left.
    """

    def __init__(self, stem: Path) -> None:
        self._stem = stem
        self._temporary = stem.with_name(stem.name + ".writing")
        self._chunks: list[bytes] = []
        self._hash = hashlib.sha256()
        self._n_bytes = self._n_hashed = 0
        self._file: IO[bytes] = _open_secret(self._temporary)

    def write(self, content: bytes | memoryview) -> None:
        """The next bytes."""
        view = memoryview(content).cast("B")
        try:
            self._file.write(view)
        except OSError as error:
            raise StorageError(f"cannot write {self._stem}: {error.strerror}") from error
        self._n_bytes += len(view)
        while view:
            head = view[: CHUNK_BYTES - self._n_hashed]
            self._hash.update(head)
            self._n_hashed += len(head)
            view = view[len(head) :]
            if self._n_hashed == CHUNK_BYTES:
                self._end_chunk()

    def finish(self, *, digest: bytes, run: bytes, role: str, parcel: str, n_tokens: int) -> None:
        """All bytes are written."""
        if self._n_hashed:
            self._end_chunk()
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._temporary.replace(_with(self._stem, PARCEL))
        except OSError as error:
            raise StorageError(f"cannot write {self._stem}: {error.strerror}") from error
        chunks = np.frombuffer(b"".join(self._chunks), np.uint8).reshape(-1, 32)
        save_manifest(
            self._stem, Manifest(digest, run, role, parcel, n_tokens, self._n_bytes, chunks)
        )

    def _end_chunk(self) -> None:
        self._chunks.append(self._hash.digest())
        self._hash, self._n_hashed = hashlib.sha256(), 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._temporary.unlink(missing_ok=True)


def save_manifest(stem: Path, manifest: Manifest) -> None:
    """Write the manifest of a parcel, durably."""
    atomic.write_file(_with(stem, MANIFEST), wire.encode(manifest), mode=0o600)
    sync_folder(stem.parent)


def load_manifest(stem: Path) -> Manifest:
    """The manifest beside a parcel.

    Raises:
        DamagedError: there is none, or it does not parse.
    """
    path = _with(stem, MANIFEST)
    try:
        message = wire.decode(path.read_bytes())
    except OSError as error:
        raise DamagedError(f"cannot read {path}: {error.strerror}") from error
    except DecodeError as error:
        raise DamagedError(f"{path} is damaged: {error}") from error
    if not isinstance(message, Manifest):
        raise DamagedError(f"{path} is no manifest")
    return message


def read(stem: Path) -> bytes:
    """A parcel's bytes, checked.

    Raises:
        DamagedError: it, or its manifest, is missing or damaged; names the chunk.
    """
    manifest, path = load_manifest(stem), _with(stem, PARCEL)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DamagedError(f"cannot read {path}: {error.strerror}") from error
    if len(content) != manifest.n_bytes:
        raise DamagedError(f"{path} has {len(content)} bytes and had {manifest.n_bytes}")
    view = memoryview(content)
    for index in range(len(manifest.chunks)):
        if not matches(manifest, index, view[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES]):
            raise DamagedError(f"{path} is damaged in chunk {index} of {len(manifest.chunks)}")
    return content


def read_chunk(stem: Path, index: int) -> bytes:
    """One chunk as it lies there, for whoever fetches it and checks it himself."""
    path = _with(stem, PARCEL)
    try:
        with path.open("rb") as file:
            file.seek(index * CHUNK_BYTES)
            return file.read(CHUNK_BYTES)
    except OSError as error:
        raise DamagedError(f"cannot read {path}: {error.strerror}") from error


def matches(manifest: Manifest, index: int, chunk: bytes | memoryview) -> bool:
    """Whether these are the bytes of that chunk."""
    wanted: bytes = manifest.chunks[index].tobytes()
    return hashlib.sha256(chunk).digest() == wanted


def stems(folder: Path, suffix: str) -> list[str]:
    """The names of parcels in a folder that have a file with this suffix."""
    return sorted(path.name.removesuffix(suffix) for path in folder.glob(f"*{suffix}"))


def remove(stem: Path) -> None:
    """Remove a parcel and all that belongs to it."""
    for suffix in (MANIFEST, PARCEL, PART):
        _with(stem, suffix).unlink(missing_ok=True)


@final
class Arrival:
    """A parcel that is being fetched. What earlier attempts left is used where it is good."""

    def __init__(self, stem: Path, manifest: Manifest) -> None:
        self._stem = stem
        self._manifest = manifest
        self._path = _with(stem, PART)
        save_manifest(stem, manifest)
        try:
            self._file = _open_secret(self._path, keep=True)
            self._file.truncate(manifest.n_bytes)
        except OSError as error:
            raise StorageError(f"no room for {stem}: {error.strerror}") from error

    def missing(self) -> list[int]:
        """Chunks that are not there, or not good."""
        result = []
        self._file.seek(0)
        for index in range(len(self._manifest.chunks)):
            if not matches(self._manifest, index, self._file.read(CHUNK_BYTES)):
                result.append(index)
        return result

    def put(self, index: int, chunk: bytes) -> None:
        """Take in a chunk.

        Raises:
            VerificationError: it is not what the manifest says.
            StorageError: the disk is full.
        """
        if not matches(self._manifest, index, chunk):
            raise VerificationError(
                f"chunk {index} of {len(self._manifest.chunks)} of parcel "
                f"{self._manifest.parcel} is not what its manifest says"
            )
        try:
            self._file.seek(index * CHUNK_BYTES)
            self._file.write(chunk)
        except OSError as error:
            raise StorageError(f"no room for {self._stem}: {error.strerror}") from error

    def finish(self) -> None:
        """All chunks are there: check them once more, and make the parcel appear."""
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise StorageError(f"cannot write {self._stem}: {error.strerror}") from error
        if damaged := self.missing():
            raise DamagedError(f"{self._path} is damaged in chunk {damaged[0]}")
        self._path.replace(_with(self._stem, PARCEL))
        sync_folder(self._stem.parent)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _open_secret(path: Path, *, keep: bool = False) -> IO[bytes]:
    """A file to read and write that only its owner may read."""
    flags = os.O_RDWR | os.O_CREAT | (0 if keep else os.O_TRUNC)
    try:
        return os.fdopen(os.open(path, flags, 0o600), "r+b")
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}") from error


def _with(stem: Path, suffix: str) -> Path:
    return stem.with_name(stem.name + suffix)
