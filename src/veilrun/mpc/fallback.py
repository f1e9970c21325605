"""What `ring` does, in numpy, for machines without the native kernel.

Products of integers go through float64 matrix products, which are exact while every sum stays
within 2^53: factors of 16 bits, and at most `_MAX_DEPTH` of them to a sum.

Invariant: the arguments are checked, in `ring`; the results are exact.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

_MAX_DEPTH = 2**20  # 2^20 * 2^32 < 2^53
_MAX_COLUMNS = 512  # of the right operand as float64 at a time
_VALUES_AT_ONCE = 2**16


def matmul(x: Array, w: Array) -> Array:
    """x @ w mod 2^16 or 2^32, by the dtype: [L, K], [K, N] -> [L, N]."""
    out = np.zeros((x.shape[0], w.shape[1]), x.dtype)
    for first in range(0, x.shape[1], _MAX_DEPTH):
        depth = slice(first, first + _MAX_DEPTH)
        left = _limbs(x[:, depth])
        for column in range(0, w.shape[1], _MAX_COLUMNS):
            columns = slice(column, column + _MAX_COLUMNS)
            out[:, columns] += _product(left, _limbs(w[depth, columns])).astype(x.dtype)
    return out


def matmul_batch(x: Array, y: Array) -> Array:
    """x[b] @ y[b]: [B, L, K], [B, K, N] -> [B, L, N]."""
    out = np.empty((x.shape[0], x.shape[1], y.shape[2]), x.dtype)
    for index, (left, right) in enumerate(zip(x, y, strict=True)):
        out[index] = matmul(left, right)
    return out


def _limbs(values: Array) -> list[Array]:
    """The values as 16-bit digits, the lowest first, in float64."""
    digits = range(0, 8 * values.itemsize, 16)
    return [((values >> shift) & 0xFFFF).astype(np.float64) for shift in digits]


def _product(x: list[Array], w: list[Array]) -> Array:
    """x @ w as uint64, right in as many low bits as there are digits."""
    total = (x[0] @ w[0]).astype(np.uint64)
    if len(x) == 2:
        cross = (x[0] @ w[1]).astype(np.uint64) + (x[1] @ w[0]).astype(np.uint64)
        total += cross << np.uint64(16)
    return total


def pack_bits(values: Array, n_bits: int) -> bytes:
    """The low `n_bits` of each value, as `ring.pack_bits` lays them out."""
    width = values.itemsize
    raw = values.astype(values.dtype.newbyteorder("<"), copy=False).view(np.uint8)
    raw = raw.reshape(-1, width)
    if n_bits % 8 == 0:
        return raw[:, : n_bits // 8].tobytes()
    parts = []
    for first in range(0, len(raw), _VALUES_AT_ONCE):  # a multiple of 8, so parts end on bytes
        bits = np.unpackbits(raw[first : first + _VALUES_AT_ONCE], axis=1, bitorder="little")
        parts.append(np.packbits(bits[:, :n_bits], bitorder="little").tobytes())
    return b"".join(parts)


def unpack_bits(data: Array, n_bits: int, n_values: int, dtype: np.dtype[Any]) -> Array:
    """The opposite of `pack_bits`; data: uint8, of the right length."""
    raw = np.zeros((n_values, dtype.itemsize), np.uint8)
    if n_bits % 8 == 0:
        raw[:, : n_bits // 8] = data.reshape(n_values, n_bits // 8)
    else:
        for first in range(0, n_values, _VALUES_AT_ONCE):
            n = min(_VALUES_AT_ONCE, n_values - first)
            part = data[first * n_bits // 8 : -(-(first + n) * n_bits // 8)]
            bits = np.unpackbits(part, count=n * n_bits, bitorder="little").reshape(n, n_bits)
            packed = np.packbits(bits, axis=1, bitorder="little")
            raw[first : first + n, : packed.shape[1]] = packed
    return raw.view(dtype.newbyteorder("<")).reshape(n_values).astype(dtype, copy=False)


def gather(tables: Array, indices: Array) -> Array:
    """tables[i, indices[i]]."""
    return np.take_along_axis(tables, indices[:, None].astype(np.intp), axis=1)[:, 0]
