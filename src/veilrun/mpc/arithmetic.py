"""What a party's part of a gate is made of: local work on ring elements, and the frames of a round.

A gate's `run` is written in these steps, and says nothing of who does them: `Direct` does each
at once, on numpy arrays; `tape.recorder.Recorder` writes them down, to be done by the native
kernel between two rounds. To a gate, a value is something with a shape that `reshape` and slices
rearrange.

Values of Z_2^bits are as in `shares`: below 2^bits, in the smallest dtype that holds them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Protocol as Interface
from typing import final

import numpy as np

from veilrun.errors import DecodeError
from veilrun.mpc import dpf, elementwise, ring
from veilrun.mpc.dpf import Rows
from veilrun.mpc.plan import packed_bytes
from veilrun.mpc.shares import Array, Shared, signed, wrap
from veilrun.mpc.weights import Matrix

Keys = tuple[Array, Array]
"""Roots uint8[n, 16] and corrections uint8[n, correction_bytes] of n point functions."""

Key = tuple[int, Keys, bytes]
"""Whose keys these are (0 or 1), they, and the tweak that the dealer made them with."""


class Arithmetic(Interface):
    """Results are mod 2^bits, and fill that ring's dtype."""

    def add(self, a: Array, b: Array, bits: int) -> Array:
        """a + b; b may have axes of length 1, which are repeated."""

    def subtract(self, a: Array, b: Array, bits: int) -> Array:
        """a - b, of one shape."""

    def negate(self, a: Array, bits: int) -> Array:
        """-a."""

    def raised(self, a: Array, by: int, bits: int) -> Array:
        """a + 2^by."""

    def sum(self, a: Array, axis: int, bits: int) -> Array:
        """The sum along an axis, which stays with length 1."""

    def less_columns(self, a: Array, columns: Sequence[Array | None], bits: int) -> Array:
        """See the function of that name."""

    def window(self, a: Array, from_bits: int, bits: int) -> Array:
        """a of Z_2^from_bits, without its upper bits."""

    def shrink(self, a: Array, by: int, bits: int, one: bool) -> Array:
        """(a >> by) + one; bits and by together are those of a's ring."""

    def upper(self, x: Array, bits: int, low_bits: int) -> Array:
        """x of Z_2^bits without its low bits, flat, as an index: uint32."""

    def lower(self, x: Array, low_bits: int) -> Array:
        """Those low bits, flat, as an index."""

    def scale(self, a: Array, table: Array, at: Array, bits: int) -> Array:
        """a table[at], elementwise; table: of a's dtype."""

    def join(self, parts: Sequence[Array], axis: int) -> Array:
        """Side by side."""

    def extend(
        self, x: Array, mask: Array, upper: tuple[Array, Array], bits: int, wide: int
    ) -> tuple[Array, Array, Array]:
        """See `elementwise.extend`."""

    def times(
        self,
        x: tuple[Array, Array, Array],
        y: tuple[Array, Array],
        dealt: tuple[Array, Array],
        rings: tuple[int, int],
        is_first: bool,
    ) -> Array:
        """See `elementwise.times`."""

    def squares(
        self,
        x: tuple[Array, Array, Array],
        dealt: tuple[Array, Array],
        rings: tuple[int, int],
        is_first: bool,
    ) -> Array:
        """See `elementwise.squares`."""

    def add_mapped(self, start: Array, x: Array, matrix: Matrix, bits: int) -> Array:
        """start + x W."""

    def matmul(self, x: Array, y: Array) -> Array:
        """x y, batched: [..., n, k] by [..., k, m]; mod 2^16 or 2^32, as their dtype is."""

    def gather(self, tables: Array, indexes: Array, bits: int) -> Array:
        """One entry of each table: [n, width] by uint32 [n]."""

    def lookup(self, key: Key, indexes: Array, rows: Rows) -> Array:
        """`dpf.lookup`: one row of results per table, in the keys' own ring."""

    def interpolate(
        self, key: Key, opened: Array, bits: int, rows: Rows, low_bits: int
    ) -> tuple[Array, Array]:
        """`dpf.interpolate` of opened values of Z_2^bits: values, and the guard's sum of shape (),
        both in the keys' own ring."""

    def packed(self, values: Sequence[Shared], masks: Sequence[Array]) -> bytes:
        """A frame of the values, each plus its mask; without masks, of the values alone."""

    def opened(self, frame: bytes, values: Sequence[Shared], masks: Sequence[Array]) -> list[Array]:
        """The values and their masks plus what the peer's frame says; without masks, likewise.

        Raises:
            DecodeError: the frame is not what a peer sends for these values.
        """

    def result(self, array: Array, bits: int) -> Array:
        """It, as a signed number, for whoever asked for it."""


@final
class Direct:
    """At once, on arrays. n_threads: for look-ups and products."""

    def __init__(self, n_threads: int = 1) -> None:
        self._n_threads = n_threads

    def add(self, a: Array, b: Array, bits: int) -> Array:
        return wrap(a + b, bits)

    def subtract(self, a: Array, b: Array, bits: int) -> Array:
        return wrap(a - b, bits)

    def negate(self, a: Array, bits: int) -> Array:
        return wrap(-a, bits)

    def raised(self, a: Array, by: int, bits: int) -> Array:
        return wrap(a + a.dtype.type(2**by), bits)

    def sum(self, a: Array, axis: int, bits: int) -> Array:
        return wrap(a.sum(axis=axis, keepdims=True, dtype=a.dtype), bits)

    def less_columns(self, a: Array, columns: Sequence[Array | None], bits: int) -> Array:
        return wrap(less_columns(a, columns), bits)

    def window(self, a: Array, from_bits: int, bits: int) -> Array:
        return wrap(a, bits)

    def upper(self, x: Array, bits: int, low_bits: int) -> Array:
        return upper(x, low_bits)

    def lower(self, x: Array, low_bits: int) -> Array:
        return lower(x, low_bits)

    def scale(self, a: Array, table: Array, at: Array, bits: int) -> Array:
        return wrap(a * table[at], bits)

    def join(self, parts: Sequence[Array], axis: int) -> Array:
        return np.concatenate(parts, axis)

    shrink = staticmethod(elementwise.shrink)
    extend = staticmethod(elementwise.extend)
    times = staticmethod(elementwise.times)
    squares = staticmethod(elementwise.squares)
    result = staticmethod(signed)

    def add_mapped(self, start: Array, x: Array, matrix: Matrix, bits: int) -> Array:
        return wrap(start + matrix.times(x), bits)

    def matmul(self, x: Array, y: Array) -> Array:
        x3 = np.ascontiguousarray(x).reshape(-1, *x.shape[-2:])
        y3 = np.ascontiguousarray(y).reshape(-1, *y.shape[-2:])
        product = ring.matmul_batch(x3, y3, n_threads=self._n_threads)
        return product.reshape(*x.shape[:-1], y.shape[-1])

    def gather(self, tables: Array, indexes: Array, bits: int) -> Array:
        return wrap(ring.gather(tables, indexes), bits)

    def lookup(self, key: Key, indexes: Array, rows: Rows) -> Array:
        party, keys, tweak = key
        return dpf.lookup(
            party, *keys, indexes, rows, rows.domain, tweak, n_threads=self._n_threads
        )

    def interpolate(
        self, key: Key, opened: Array, bits: int, rows: Rows, low_bits: int
    ) -> tuple[Array, Array]:
        party, keys, tweak = key
        flat, n_threads = opened.reshape(-1), self._n_threads
        values, n_flagged = dpf.interpolate(
            party, *keys, flat, rows, low_bits, tweak, n_threads=n_threads
        )
        return values, np.array(n_flagged, rows.domain.dtype)

    def packed(self, values: Sequence[Shared], masks: Sequence[Array]) -> bytes:
        if not masks:
            return b"".join(ring.pack_bits(z.array, z.bits) for z in values)
        pairs = zip(values, masks, strict=True)
        return b"".join(ring.pack_sum(z.array, mask, z.bits) for z, mask in pairs)

    def opened(self, frame: bytes, values: Sequence[Shared], masks: Sequence[Array]) -> list[Array]:
        others = masks or [np.zeros_like(z.array) for z in values]
        return [
            ring.add_packed(z.array, mask, part, z.bits)
            for z, mask, part in zip(values, others, split(frame, values), strict=True)
        ]


def less_columns(a: Array, columns: Sequence[Array | None]) -> Array:
    """Of each matrix of a, [..., n, m], each row less its own entry in the column that is named for
    that row; None: the matrix as it is.
    """
    result = a.copy()
    for number, column in enumerate(columns):
        if column is not None:
            result[number] -= a[number][np.arange(len(column)), column][:, None]
    return result


def upper(opened: Array, low_bits: int) -> Array:
    """An opened value, or a mask, without its low bits: flat, uint32."""
    result: Array = opened.reshape(-1) >> opened.dtype.type(low_bits)
    return result.astype(np.uint32)


def lower(opened: Array, low_bits: int) -> Array:
    """Those low bits, flat."""
    result: Array = opened.reshape(-1) & opened.dtype.type(2**low_bits - 1)
    return result


def split(frame: bytes, values: Sequence[Shared]) -> list[memoryview]:
    """The part of each value."""
    sizes = [packed_bytes(z.shape, z.bits) for z in values]
    check_length(frame, sum(sizes))
    view = memoryview(frame)
    return [view[end - size : end] for size, end in zip(sizes, accumulate(sizes), strict=True)]


def check_length(frame: bytes, n_bytes: int) -> None:
    """Raises DecodeError: an opening of another length."""
    if len(frame) != n_bytes:
        raise DecodeError(f"an opening of {len(frame)} bytes where {n_bytes} are due")
