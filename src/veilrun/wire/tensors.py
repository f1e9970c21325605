"""Named arrays and small metadata in one frame. Bytes in, values out; no pickle, no I/O.

Frame, little-endian:

    magic      b"VRT", then the version, 1 byte: 1
    n_fields   u16
    n_tensors  u16
    kind       name: what the frame is, for instance "stage.forward"
    fields     n_fields times: name, tag 1 byte, value
    tensors    n_tensors times: name, dtype 1 byte, n_dims 1 byte (at most 8), a u64 per axis
    data       for each tensor: zero bytes up to a multiple of 8 from the frame's start, then
               its elements in C order; the frame ends with the last element

    name       u8 length, then 1 to 255 printable ASCII characters, no space
    value      boolean: 1 byte, 0 or 1. whole number: i64. number: f64, finite, never -0.0.
               text: u16 length, UTF-8. raw: u16 length, bytes
    dtype      1 bool, 2-5 u8 to u64, 6-9 i8 to i64, 10-12 f16 to f64, 13 bf16

Why so: names ascend, so nothing depends on the order of a dict and no name comes twice. No
length is stored that follows from another, so none can contradict. Padding is zero and
nothing trails, so a frame has no room for a hidden message. 8 is the largest element, so
views are aligned. A NaN or a -0.0 among the fields would make equal values unequal; in a
tensor they are bits like any others. Large things are tensors: fields stop at 65,535 bytes.

Invariants. `decode` returns a message or raises `DecodeError`, never anything else; it copies
no tensor, so beside the frame it holds a few hundred bytes per entry, and the number of
entries has a limit. Canonical: equal messages give equal bytes, and whatever `decode`
accepts, `encode` gives back byte for byte.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from veilrun.errors import DecodeError, UsageError
from veilrun.wire.fields import Reader

_MAGIC: Final = b"VRT\x01"
_ALIGN_BYTES: Final = 8
_MAX_DIMS: Final = 8
_NAME: Final = re.compile(r"[!-~]{1,255}")

_U8, _U16 = struct.Struct("<B"), struct.Struct("<H")
_I64, _U64, _F64 = struct.Struct("<q"), struct.Struct("<Q"), struct.Struct("<d")

_BOOL, _BF16 = 1, 13
_DTYPE_OF_TAG: Final[Mapping[int, np.dtype[Any]]] = {
    tag: np.dtype(code)
    for tag, code in enumerate(
        ("?", "<u1", "<u2", "<u4", "<u8", "<i1", "<i2", "<i4", "<i8", "<f2", "<f4", "<f8"), start=1
    )
} | {_BF16: np.dtype("<u2")}
_TAG_OF_DTYPE: Final = {
    (dtype.kind, dtype.itemsize): tag for tag, dtype in _DTYPE_OF_TAG.items() if tag != _BF16
}
_BOOLEAN, _WHOLE, _NUMBER, _TEXT, _RAW = 1, 2, 3, 4, 5

Array = npt.NDArray[Any]
Scalar = bool | int | float | str | bytes


@dataclass(frozen=True, slots=True, eq=False)
class BFloat16:
    """bfloat16 numbers, which numpy has no type for. bits: uint16, any shape, one per number."""

    bits: npt.NDArray[np.uint16]


Tensor = Array | BFloat16


@dataclass(frozen=True, slots=True, eq=False)
class Message:
    """What one frame carries. Equal when the frames are: same types, shapes and bits.

    kind: what the message is; a receiver checks it before anything else.
    tensors: by name; after decoding they are read-only views of the frame.
    fields: by name; a boolean, an int64, a finite number, a text or bytes.
    """

    kind: str
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    fields: Mapping[str, Scalar] = field(default_factory=dict)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Message) and encode(self) == encode(other)

    def __repr__(self) -> str:  # no content: a tensor may be half of a secret
        tensors = {name: _bits(tensor).shape for name, tensor in self.tensors.items()}
        return f"Message({self.kind!r}, tensors={tensors}, fields={sorted(self.fields)})"


@dataclass(frozen=True, slots=True)
class Limits:
    """What a reader is ready to hold.

    max_frame_bytes: the whole frame; a prompt's hidden states at 8192 x 8192 in f16 are 128 MiB.
    max_tensors, max_fields: an entry costs a few hundred bytes of memory and three of frame.
    """

    max_frame_bytes: int = 256 * 2**20
    max_tensors: int = 1024
    max_fields: int = 64


# --- encoding ---------------------------------------------------------------------------


def encode(message: Message) -> bytes:
    """The one frame of this message. Arrays of any byte order and layout are accepted.

    Raises:
        UsageError: a name, type or value that the format has no place for.
    """
    head = [
        _MAGIC,
        _count(message.fields, "fields"),
        _count(message.tensors, "tensors"),
        _encode_name(message.kind),
    ]
    for name in sorted(message.fields):
        head += (_encode_name(name), _encode_field(name, message.fields[name]))
    data: list[Array] = []
    for name in sorted(message.tensors):
        tag, array = _prepare(name, message.tensors[name])
        head += (_encode_name(name), _U8.pack(tag), _U8.pack(array.ndim))
        head += map(_U64.pack, array.shape)
        data.append(array)
    return _join(b"".join(head), data)


def _join(head: bytes, data: Iterable[Array]) -> bytes:
    parts: list[bytes | memoryview] = [head]
    n_bytes = len(head)
    for array in data:
        padding = bytes(-n_bytes % _ALIGN_BYTES)
        parts += (padding, array.data)
        n_bytes += len(padding) + array.nbytes
    return b"".join(parts)


def _count(entries: Mapping[str, object], what: str) -> bytes:
    if len(entries) >= 2**16:
        raise UsageError(f"{len(entries)} {what} in one message; the format allows {2**16 - 1}")
    return _U16.pack(len(entries))


def _encode_name(name: str) -> bytes:
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name!r} is no name: 1 to 255 printable ASCII characters, no space")
    return _U8.pack(len(name)) + name.encode("ascii")


def _encode_field(name: str, value: Scalar) -> bytes:
    # Exact types: True is an int to Python and numpy.float64 is a float, but not on the wire.
    if type(value) is bool:
        return bytes((_BOOLEAN, value))
    if type(value) is int and -(2**63) <= value < 2**63:
        return bytes((_WHOLE,)) + _I64.pack(value)
    if type(value) is float and math.isfinite(value):
        return bytes((_NUMBER,)) + _F64.pack(value + 0.0)  # -0.0 + 0.0 is 0.0
    if type(value) is bytes and len(value) < 2**16:
        return bytes((_RAW,)) + _U16.pack(len(value)) + value
    if type(value) is str:
        try:
            text = value.encode()
        except UnicodeEncodeError as error:
            raise UsageError(f"field {name}: the text has a lone surrogate") from error
        if len(text) < 2**16:
            return bytes((_TEXT,)) + _U16.pack(len(text)) + text
    raise UsageError(
        f"field {name}: a {type(value).__name__} that is no boolean, int64, finite number, "
        f"nor text or bytes below {2**16} bytes"
    )


def _prepare(name: str, tensor: Tensor) -> tuple[int, Array]:
    """The dtype's tag and the elements: little-endian, C order; a copy only where needed."""
    array = _bits(tensor)
    tag = _TAG_OF_DTYPE.get((array.dtype.kind, array.dtype.itemsize))
    if isinstance(tensor, BFloat16):
        if tag != _TAG_OF_DTYPE["u", 2]:
            raise UsageError(f"tensor {name}: bfloat16 bits must be uint16, are {array.dtype}")
        tag = _BF16
    if tag is None:
        raise UsageError(f"tensor {name}: dtype {array.dtype} has no place in a frame")
    if array.ndim > _MAX_DIMS:
        raise UsageError(f"tensor {name}: {array.ndim} axes; the format allows {_MAX_DIMS}")
    array = np.asarray(array, dtype=_DTYPE_OF_TAG[tag], order="C")
    if tag == _BOOL and not _are_bits(array):
        raise UsageError(f"tensor {name}: a boolean that is neither 0 nor 1 in memory")
    return tag, array


def _bits(tensor: Tensor) -> Array:
    return tensor.bits if isinstance(tensor, BFloat16) else tensor


def _are_bits(array: Array) -> bool:
    """Whether each byte of a boolean array is 0 or 1; numpy leaves others undefined."""
    return array.size == 0 or int(array.view(np.uint8).max()) <= 1


# --- decoding ---------------------------------------------------------------------------


def decode(frame: bytes, *, limits: Limits) -> Message:
    """Read a frame. Tensors are read-only views of `frame`, which they keep alive.

    Raises:
        DecodeError: the frame is not one that `encode` gives, or is beyond `limits`.
    """
    if len(frame) > limits.max_frame_bytes:
        raise DecodeError(f"frame of {len(frame)} bytes, the limit is {limits.max_frame_bytes}")
    cursor = _Cursor(frame)
    if cursor.take(len(_MAGIC), "magic") != _MAGIC:
        raise DecodeError("not a tensor frame of version 1")
    n_fields = cursor.count("fields", limits.max_fields)
    n_tensors = cursor.count("tensors", limits.max_tensors)
    kind = cursor.name("kind")
    fields: dict[str, Scalar] = {}
    for _ in range(n_fields):
        name = cursor.name_above(next(reversed(fields), ""))
        fields[name] = _decode_field(cursor, name)
    entries: dict[str, _Entry] = {}
    for _ in range(n_tensors):
        name = cursor.name_above(next(reversed(entries), ""))
        entries[name] = _decode_entry(cursor, name)
    tensors = {name: _decode_data(cursor, name, entry) for name, entry in entries.items()}
    if cursor.position != len(frame):
        raise DecodeError(f"{len(frame) - cursor.position} bytes after the last tensor")
    return Message(kind, tensors, fields)


class _Cursor:
    """Reads a frame from its start; a read past its end is a `DecodeError`."""

    def __init__(self, frame: bytes) -> None:
        self.frame = frame
        self.position = 0

    def take(self, n_bytes: int, what: str) -> bytes:
        """The next bytes, copied: for names, fields and padding, never for a tensor."""
        return self.frame[self.skip(n_bytes, what) : self.position]

    def skip(self, n_bytes: int, what: str) -> int:
        """Pass over the next bytes; where they began."""
        begin = self.position
        left = len(self.frame) - begin
        if n_bytes > left:
            raise DecodeError(f"{what}: {n_bytes} bytes announced, {left} left", field=what)
        self.position += n_bytes
        return begin

    def number(self, layout: struct.Struct, what: str) -> Any:
        return layout.unpack(self.take(layout.size, what))[0]

    def count(self, what: str, limit: int) -> int:
        n_entries: int = self.number(_U16, what)
        if n_entries > limit:
            raise DecodeError(f"{n_entries} {what}, the limit is {limit}", field=what)
        return n_entries

    def name(self, what: str) -> str:
        name = self.take(self.number(_U8, what), what).decode("latin-1")
        if not _NAME.fullmatch(name):
            raise DecodeError(f"{what}: not 1 to 255 printable ASCII characters", field=what)
        return name

    def name_above(self, last: str) -> str:
        name = self.name("name")
        if name <= last:
            raise DecodeError(f"{name} after {last}: names must ascend", field=name)
        return name


@dataclass(frozen=True, slots=True)
class _Entry:
    """A tensor's place in the table, its data still to come."""

    tag: int
    shape: tuple[int, ...]


def _decode_field(cursor: _Cursor, name: str) -> Scalar:
    tag = cursor.number(_U8, name)
    if tag == _BOOLEAN:
        bit: int = cursor.number(_U8, name)
        if bit > 1:
            raise DecodeError(f"{name}: a boolean of {bit}", field=name)
        return bit == 1
    if tag == _WHOLE:
        whole: int = cursor.number(_I64, name)
        return whole
    if tag == _NUMBER:
        number: float = cursor.number(_F64, name)
        if not math.isfinite(number) or (number == 0 and math.copysign(1, number) < 0):
            raise DecodeError(f"{name}: {number} is not a number that a field may hold", field=name)
        return number
    if tag == _RAW:
        return cursor.take(cursor.number(_U16, name), name)
    if tag == _TEXT:
        try:
            return cursor.take(cursor.number(_U16, name), name).decode()
        except UnicodeDecodeError as error:
            raise DecodeError(f"{name}: not UTF-8", field=name) from error
    raise DecodeError(f"{name}: unknown tag {tag}", field=name)


def _decode_entry(cursor: _Cursor, name: str) -> _Entry:
    tag = cursor.number(_U8, name)
    if tag not in _DTYPE_OF_TAG:
        raise DecodeError(f"{name}: unknown dtype {tag}", field=name)
    n_dims = cursor.number(_U8, name)
    if n_dims > _MAX_DIMS:
        raise DecodeError(f"{name}: {n_dims} axes, the limit is {_MAX_DIMS}", field=name)
    shape = tuple(cursor.number(_U64, name) for _ in range(n_dims))
    # An axis of 0 empties the tensor, but numpy multiplies the others all the same.
    if math.prod(max(axis, 1) for axis in shape) * _DTYPE_OF_TAG[tag].itemsize >= 2**63:
        raise DecodeError(f"{name}: no memory holds the shape {shape}", field=name)
    return _Entry(tag, shape)


def _decode_data(cursor: _Cursor, name: str, entry: _Entry) -> Tensor:
    if any(cursor.take(-cursor.position % _ALIGN_BYTES, name)):
        raise DecodeError(f"{name}: padding that is not zero", field=name)
    dtype = _DTYPE_OF_TAG[entry.tag]
    begin = cursor.skip(math.prod(entry.shape) * dtype.itemsize, name)
    array: Array = np.ndarray(entry.shape, dtype, buffer=cursor.frame, offset=begin)
    if entry.tag == _BOOL and not _are_bits(array):
        raise DecodeError(f"{name}: a boolean that is neither 0 nor 1", field=name)
    return BFloat16(array) if entry.tag == _BF16 else array


# --- readers of one tensor, for `wire.fields.Fields` --------------------------------------


def array_of(dtype: npt.DTypeLike, *shape: int | None) -> Reader[Array]:
    """Reads a tensor of exactly this dtype and shape; None stands for an axis of any length.

    Fields(message.tensors, "tensors").take("hidden", array_of(np.float16, None, 768))
    """
    wanted = np.dtype(dtype)

    def read(value: Any, name: str) -> Array:
        if not isinstance(value, np.ndarray) or value.dtype != wanted:
            raise DecodeError(f"{name} must be {wanted}, is {_dtype_name(value)}", field=name)
        _check_shape(value, shape, name)
        return value

    return read


def bfloat16_of(*shape: int | None) -> Reader[BFloat16]:
    """Reads a bfloat16 tensor of exactly this shape; None stands for an axis of any length."""

    def read(value: Any, name: str) -> BFloat16:
        if not isinstance(value, BFloat16):
            raise DecodeError(f"{name} must be bfloat16, is {_dtype_name(value)}", field=name)
        _check_shape(value.bits, shape, name)
        return value

    return read


def _check_shape(value: Array, shape: tuple[int | None, ...], name: str) -> None:
    fits = len(shape) == value.ndim and all(
        wanted in (None, axis) for wanted, axis in zip(shape, value.shape, strict=True)
    )
    if not fits:
        text = ", ".join("any" if wanted is None else str(wanted) for wanted in shape)
        raise DecodeError(f"{name} must have shape ({text}), has {value.shape}", field=name)


def _dtype_name(value: Any) -> str:
    return str(value.dtype) if isinstance(value, np.ndarray) else type(value).__name__.lower()
