"""Arithmetic mod 2^16, 2^32 and 2^64: matrix products, dense bit packing, one-time-table reads.

A ring element is an unsigned integer of numpy: uint16, uint32 or uint64, and wraps as they do.
Elementwise arithmetic is numpy's own; here is what numpy has no fast form of. It runs in the
native kernel where there is one and in numpy where not.

Invariant: results are exact, and the same to the last bit with and without the kernel, with any
processor features and any number of threads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from veilrun.errors import DecodeError, UsageError
from veilrun.mpc import fallback, native

Array = npt.NDArray[Any]

_MATMUL = (np.dtype(np.uint16), np.dtype(np.uint32))
_UNSIGNED = (np.dtype(np.uint8), *_MATMUL, np.dtype(np.uint64))
_STRIP = 16
_STRIP_ROW_BYTES = 64


class Strips(NamedTuple):
    """A right operand as the kernel has it: so many strips of columns."""

    data: Array
    n_strips: int


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """A right operand made ready for many products; from `pack`.

    shape: (K, N) of the matrix. dtype: uint16 or uint32.
    """

    shape: tuple[int, int]
    dtype: np.dtype[Any]
    _data: Array
    _kernel: native.Kernel | None

    @property
    def strips(self) -> Strips:
        """As the kernel has it."""
        if self._kernel is None:
            raise AssertionError("there are strips only where there is a kernel")
        return Strips(self._data, _n_strips(self.shape[1]))


def pack(w: Array) -> Packed:
    """Make a right operand ready; it keeps a copy of about w's size and not w.

    w: [K, N] uint16 or uint32.

    Raises:
        UsageError: another shape or dtype.
    """
    _check_array("w", w, 2, _MATMUL)
    k, n = w.shape
    kernel = native.KERNEL
    if kernel is None:
        return Packed((k, n), w.dtype, w.copy(), None)
    strips = native.aligned(strips_bytes(k, n, w.dtype))
    kernel.call("pack_strips", w.itemsize, native.contiguous(w), k, n, strips)
    return Packed((k, n), w.dtype, strips, kernel)


def strips_bytes(k: int, n: int, dtype: np.dtype[Any]) -> int:
    """What a right operand [k, n] takes when it is ready for the kernel."""
    return _STRIP_ROW_BYTES * (k if dtype.itemsize == 4 else -(-k // 2)) * _n_strips(n)


def _n_strips(n: int) -> int:
    return -(-n // _STRIP)


def matmul(x: Array, w: Packed | Array, *, n_threads: int = 1) -> Array:
    """x @ w mod 2^16 or 2^32.

    x: [L, K]; w: [K, N], packed or not, of x's dtype, uint16 or uint32. Returns [L, N].
    n_threads: each takes a part of the columns.

    Raises:
        UsageError: shapes or dtypes that do not fit.
    """
    _check_array("x", x, 2, _MATMUL)
    if not isinstance(w, Packed):
        w = pack(w)
    if x.dtype != w.dtype or x.shape[1] != w.shape[0]:
        raise UsageError(f"no product of {_form(x)} and {w.dtype} {list(w.shape)}")
    kernel = w._kernel
    if kernel is None:
        return fallback.matmul(x, w._data)
    out = np.empty((x.shape[0], w.shape[1]), x.dtype)
    left, n, strips = _whole_lanes(x), w.shape[1], w._data

    def run(first: int, end: int) -> None:
        kernel.call(
            "matmul", kernel.features, x.itemsize, left, *left.shape, strips, n, first, end, out
        )

    native.spread(run, _n_strips(n), n_threads)
    return out


def matmul_batch(x: Array, y: Array, *, n_threads: int = 1) -> Array:
    """x[b] @ y[b] mod 2^16 or 2^32, for every b.

    x: [B, L, K]; y: [B, K, N]; both uint16 or both uint32. Returns [B, L, N].
    n_threads: each takes a part of the batch.

    Raises:
        UsageError: shapes or dtypes that do not fit.
    """
    _check_array("x", x, 3, _MATMUL)
    _check_array("y", y, 3, _MATMUL)
    if x.dtype != y.dtype or x.shape[0] != y.shape[0] or x.shape[2] != y.shape[1]:
        raise UsageError(f"no products of {_form(x)} and {_form(y)}")
    kernel = native.KERNEL
    if kernel is None:
        return fallback.matmul_batch(x, y)
    n_batch, k, n = y.shape
    out = np.empty((n_batch, x.shape[1], n), x.dtype)
    left, right = _whole_lanes(x), native.contiguous(y)
    sizes = (x.shape[1], k, n)

    def run(first: int, end: int) -> None:
        scratch = native.aligned(strips_bytes(k, n, x.dtype))
        part = slice(first, end)
        kernel.call(
            "matmul_batch", kernel.features, x.itemsize, left[part], right[part], end - first,
            *sizes, scratch, out[part],
        )  # fmt: skip

    native.spread(run, n_batch, n_threads)
    return out


def _whole_lanes(x: Array) -> Array:
    """C-contiguous, its rows padded with a zero to a multiple of four bytes."""
    if x.itemsize == 4 or x.shape[-1] % 2 == 0:
        return native.contiguous(x)
    padded = np.zeros((*x.shape[:-1], x.shape[-1] + 1), x.dtype)
    padded[..., :-1] = x
    return padded


def pack_bits(values: Array, n_bits: int) -> bytes:
    """The low `n_bits` of each value as one little-endian bit string, padded with zero bits.

    values: uint8, uint16, uint32 or uint64 of any shape, read in C order. n_bits: 1 to the
    dtype's width. Value i is bits i * n_bits and up; bit j of the string is bit j % 8 of byte
    j // 8.

    Raises:
        UsageError: another dtype or width.
    """
    _check_width(values.dtype, n_bits)
    flat = native.contiguous(values).reshape(-1)
    if n_bits == 8 * flat.itemsize:
        return flat.tobytes()
    kernel = native.KERNEL
    if kernel is None:
        return fallback.pack_bits(flat, n_bits)
    out = np.empty(-(-flat.size * n_bits // 8), np.uint8)
    kernel.call("pack_bits", flat.itemsize, flat, flat.size, n_bits, out)
    return out.tobytes()


def unpack_bits(
    data: bytes | bytearray | memoryview, n_bits: int, n_values: int, dtype: npt.DTypeLike
) -> Array:
    """What `pack_bits` packed: `n_values` of `dtype`, one-dimensional.

    Raises:
        DecodeError: data of another length, or padding that is not zero.
        UsageError: a dtype or width that `pack_bits` does not take, or n_values < 0.
    """
    kind = np.dtype(dtype)
    _check_width(kind, n_bits)
    if n_values < 0:
        raise UsageError(f"n_values must not be negative, is {n_values}")
    packed = _packed(data, n_bits, n_values)
    if n_bits == 8 * kind.itemsize:
        return packed.view(kind).copy()
    kernel = native.KERNEL
    if kernel is None:
        return fallback.unpack_bits(packed, n_bits, n_values, kind)
    out = np.empty(n_values, kind)
    kernel.call("unpack_bits", kind.itemsize, packed, packed.size, n_bits, n_values, out)
    return out


def _packed(data: bytes | bytearray | memoryview, n_bits: int, n_values: int) -> Array:
    packed = np.frombuffer(data, np.uint8)
    n_bytes = -(-n_values * n_bits // 8)
    if packed.size != n_bytes:
        raise DecodeError(f"packed values take {n_bytes} bytes, there are {packed.size}")
    n_last = n_values * n_bits % 8
    if n_last and packed[-1] >> n_last:
        raise DecodeError("the padding of packed values is not zero")
    return packed


def pack_sum(a: Array, b: Array, n_bits: int) -> bytes:
    """a + b mod 2^n_bits, packed as `pack_bits` does it, in one pass.

    a, b: uint16, uint32 or uint64 of one shape. n_bits: 1 to the dtype's width.

    Raises:
        UsageError: dtypes, shapes or a width that do not fit.
    """
    _check_terms(a, b, n_bits)
    kernel = native.KERNEL
    if kernel is None:
        return pack_bits(a + b, n_bits)
    out = np.empty(-(-a.size * n_bits // 8), np.uint8)
    terms = native.contiguous(a), native.contiguous(b)
    kernel.call("pack_sum", a.itemsize, *terms, a.size, n_bits, out)
    return out.tobytes()


def add_packed(a: Array, b: Array, data: bytes | bytearray | memoryview, n_bits: int) -> Array:
    """a + b + the values in `data` mod 2^n_bits, in one pass; in the shape of a and b.

    a, b: as for `pack_sum`.

    Raises:
        DecodeError: as `unpack_bits`.
        UsageError: dtypes, shapes or a width that do not fit.
    """
    _check_terms(a, b, n_bits)
    packed = _packed(data, n_bits, a.size)
    kernel = native.KERNEL
    if kernel is None:
        values = unpack_bits(data, n_bits, a.size, a.dtype).reshape(a.shape)
        total: Array = (a + b + values) & a.dtype.type(2**n_bits - 1)
        return total
    out = np.empty(a.shape, a.dtype)
    terms = native.contiguous(a), native.contiguous(b)
    kernel.call("add_packed", a.itemsize, *terms, packed, packed.size, n_bits, a.size, out)
    return out


def gather(tables: Array, indices: Array) -> Array:
    """tables[i, indices[i]] for every i: one read of each one-time table.

    tables: [N, width] unsigned; indices: uint32 [N], each below width. Returns [N].

    Raises:
        UsageError: shapes or dtypes that do not fit, or an index beyond its table.
    """
    _check_array("tables", tables, 2, _UNSIGNED)
    _check_array("indices", indices, 1, (np.dtype(np.uint32),))
    n, width = tables.shape
    if indices.shape != (n,):
        raise UsageError(f"{n} tables need as many indices, there are {indices.size}")
    if n and int(indices.max()) >= width:
        raise UsageError(f"index {int(indices.max())} is beyond tables of {width} entries")
    kernel = native.KERNEL
    if kernel is None:
        return fallback.gather(tables, indices)
    out = np.empty(n, tables.dtype)
    rows, at = native.contiguous(tables), native.contiguous(indices)
    kernel.call("gather", tables.itemsize, rows, n, width, at, out)
    return out


def _check_array(name: str, array: Array, n_dims: int, dtypes: tuple[np.dtype[Any], ...]) -> None:
    if array.ndim != n_dims or array.dtype not in dtypes:
        kinds = " or ".join(str(one) for one in dtypes)
        raise UsageError(f"{name} must be {kinds} of {n_dims} dimensions, is {_form(array)}")


def _check_terms(a: Array, b: Array, n_bits: int) -> None:
    if a.dtype not in _UNSIGNED[1:] or b.dtype != a.dtype or b.shape != a.shape:
        raise UsageError(f"no packed sums of {_form(a)} and {_form(b)}")
    _check_width(a.dtype, n_bits)


def _check_width(dtype: np.dtype[Any], n_bits: int) -> None:
    if dtype not in _UNSIGNED:
        raise UsageError(f"values to pack must be unsigned integers, not {dtype}")
    if not 1 <= n_bits <= 8 * dtype.itemsize:
        raise UsageError(f"n_bits must be 1 to {8 * dtype.itemsize} for {dtype}, is {n_bits}")


def _form(array: Array) -> str:
    return f"{array.dtype} {list(array.shape)}"
