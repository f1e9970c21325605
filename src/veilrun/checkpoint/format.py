"""One safetensors file, read and written by ranges.

Layout: u64 little-endian length of the header; header, JSON `{name: {dtype, shape,
data_offsets: [begin, end]}}` with offsets from the end of the header; data.

Why not the safetensors package: it maps the file, and mapped pages count as this process's
memory, so streaming a model would show (and, under a memory limit, use) the whole of it.

Invariant: opening checks that the tensors cover the data exactly, without gap or overlap, so
a truncated or edited file is a `CheckpointError` before any tensor is read.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from veilrun.errors import CheckpointError, DecodeError, StorageError
from veilrun.wire import fields
from veilrun.wire.fields import Fields

DTYPE_BYTES: Final[Mapping[str, int]] = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1,
    "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4,
    "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip

MAX_HEADER_BYTES: Final = 100_000_000  # the format's own limit


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor's place: `dtype` in safetensors' words, `begin` in bytes from the data's start."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int

    @property
    def n_bytes(self) -> int:
        """Size of the tensor's data."""
        return math.prod(self.shape) * DTYPE_BYTES[self.dtype]


class SafetensorsFile:
    """An open file. `infos` are checked; `read` gives the exact bytes of one tensor."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = path.open("rb", buffering=0)
            size = os.fstat(self._file.fileno()).st_size
            self.infos, self._data_start = _read_header(self._file.fileno(), size, path)
        except OSError as error:
            raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
        except CheckpointError:
            self._file.close()
            raise

    def read(self, name: str) -> bytearray:
        """All bytes of tensor `name`."""
        info = self.infos[name]
        return self.read_range(name, 0, info.n_bytes)

    def read_range(self, name: str, start: int, stop: int) -> bytearray:
        """Bytes `start` to `stop` of tensor `name`'s data."""
        buffer = bytearray(stop - start)
        view = memoryview(buffer)
        position = self._data_start + self.infos[name].begin + start
        while view:
            try:
                n_read = os.preadv(self._file.fileno(), [view], position)
            except OSError as error:
                raise CheckpointError(f"cannot read {self.path}: {error.strerror}") from error
            if n_read == 0:
                raise CheckpointError(f"{self.path} became shorter while it was read")
            view, position = view[n_read:], position + n_read
        return buffer

    def close(self) -> None:
        """Release the file."""
        self._file.close()


class SafetensorsWriter:
    """Writes a file whose tensors are known in advance, in any order.

    The caller places it in a folder that is renamed when all is well (`atomic.new_folder`).
    """

    def __init__(self, path: Path, tensors: Iterable[tuple[str, str, tuple[int, ...]]]) -> None:
        self.path = path
        self.infos: dict[str, TensorInfo] = {}
        begin = 0
        for name, dtype, shape in tensors:
            self.infos[name] = info = TensorInfo(name, dtype, shape, begin)
            begin += info.n_bytes
        header = _encode_header(self.infos.values())
        self._data_start = len(header)
        self._missing = set(self.infos)
        self._file = path.open("wb", buffering=0)
        self._write_at(0, memoryview(header))

    def write(self, name: str, data: bytes | bytearray | memoryview) -> None:
        """Put the data of one tensor; its size must be what the header says."""
        info = self.infos[name]
        view = memoryview(data).cast("B")
        if view.nbytes != info.n_bytes:
            raise ValueError(f"{name}: {view.nbytes} bytes for a tensor of {info.n_bytes}")
        self._write_at(self._data_start + info.begin, view)
        self._missing.discard(name)

    def _write_at(self, position: int, view: memoryview) -> None:
        try:
            while view:
                n_written = os.pwrite(self._file.fileno(), view, position)
                view, position = view[n_written:], position + n_written
        except OSError as error:
            raise StorageError(f"cannot write {self.path}: {error.strerror}") from error

    def __enter__(self) -> SafetensorsWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None and self._missing:
                raise ValueError(f"tensors never written: {sorted(self._missing)[:4]}")
            if kind is None:
                os.fsync(self._file.fileno())
        finally:
            self._file.close()


def _encode_header(infos: Iterable[TensorInfo]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    for info in infos:
        offsets = [info.begin, info.begin + info.n_bytes]
        entries[info.name] = {"dtype": info.dtype, "shape": info.shape, "data_offsets": offsets}
    body = json.dumps(entries, separators=(",", ":")).encode()
    body += b" " * (-len(body) % 8)  # the format aligns the data to 8 bytes
    return struct.pack("<Q", len(body)) + body


def _read_header(descriptor: int, size: int, path: Path) -> tuple[dict[str, TensorInfo], int]:
    prefix = os.pread(descriptor, 8, 0)
    if len(prefix) < 8:
        raise CheckpointError(f"{path} is not a safetensors file: it has {size} bytes")
    (length,) = struct.unpack("<Q", prefix)
    if length > min(MAX_HEADER_BYTES, size - 8):
        raise CheckpointError(f"{path} is truncated or is not a safetensors file")
    try:
        body = fields.json_object(os.pread(descriptor, length, 8))
        infos = [_info(name, entry) for name, entry in body.items() if name != "__metadata__"]
    except DecodeError as error:
        raise CheckpointError(f"{path} has a damaged header: {error}") from error
    data_start = 8 + length
    _check_cover(infos, size - data_start, path)
    return {info.name: info for info in infos}, data_start


def _info(name: str, entry: Any) -> TensorInfo:
    tensor = Fields(fields.mapping(entry, name), name)
    info = TensorInfo(
        name=name,
        dtype=tensor.take("dtype", fields.one_of(*DTYPE_BYTES)),
        shape=tensor.take("shape", fields.natural_numbers),
        begin=(offsets := tensor.take("data_offsets", fields.natural_numbers) or (0,))[0],
    )
    if len(offsets) != 2 or offsets[1] - offsets[0] != info.n_bytes:
        raise DecodeError(f"{name}: offsets and shape disagree")
    return info


def _check_cover(infos: list[TensorInfo], n_data_bytes: int, path: Path) -> None:
    position = 0
    for info in sorted(infos, key=lambda one: (one.begin, one.n_bytes)):
        if info.begin != position:
            raise CheckpointError(f"{path}: the data of {info.name} overlaps or leaves a gap")
        position += info.n_bytes
    if position != n_data_bytes:
        raise CheckpointError(
            f"{path} is truncated or damaged: {n_data_bytes} bytes of data where the header "
            f"promises {position}"
        )
