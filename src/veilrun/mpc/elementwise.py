"""The gates' elementwise steps, each in one pass in the native kernel, or in numpy.

Values of a b-bit ring are as in `shares`: below 2^b, in the smallest dtype that holds them.

Invariant: the same to the last bit with and without the kernel.
"""

from __future__ import annotations

import numpy as np

from veilrun.mpc import native
from veilrun.mpc.native import contiguous
from veilrun.mpc.shares import Array, dtype_of, widen, wrap

_LARGE = 1 << 14
"""Below so many elements numpy's two passes take less than a call into the kernel."""


def shrink(a: Array, by: int, bits: int, one: bool) -> Array:
    """(a >> by) + one mod 2^bits; bits and by together are those of a's ring."""
    kernel = native.KERNEL
    dtype = dtype_of(bits)
    if kernel is None or a.size < _LARGE:
        return wrap((a >> a.dtype.type(by)) + a.dtype.type(one), bits)
    out = np.empty(a.shape, dtype)
    kernel.call("shrink", a.itemsize, out.itemsize, a.size, by, bits, one, contiguous(a), out)
    return out


def extend(
    x: Array, mask: Array, upper: tuple[Array, Array], bits: int, wide: int
) -> tuple[Array, Array, Array]:
    """What `gates.extend` makes of an opened x: A, rho and v, the last as 0 or 1.

    upper: the halves of carry and of carry + msb(m), in Z_2^(wide - bits).
    """
    kernel = native.KERNEL
    dtype = dtype_of(wide)
    without, with_top = upper
    if kernel is None:
        top = ((x >> x.dtype.type(bits - 1)) == 0).astype(np.uint8)
        carried = widen(np.where(top, with_top, without), wide) << dtype.type(bits)
        array = wrap(widen(x, wide) - dtype.type(2 ** (bits - 2)), wide)
        return array, wrap(widen(mask, wide) - carried, wide), top
    array, rho = np.empty(x.shape, dtype), np.empty(x.shape, dtype)
    top = np.empty(x.shape, np.uint8)
    kernel.call(
        "extend", x.itemsize, without.itemsize, dtype.itemsize, x.size, bits, wide,
        contiguous(x), contiguous(mask), contiguous(without), contiguous(with_top),
        array, rho, top,
    )  # fmt: skip
    return array, rho, top


def times(
    x: tuple[Array, Array, Array],
    y: tuple[Array, Array],
    dealt: tuple[Array, Array],
    rings: tuple[int, int],
    is_first: bool,
) -> Array:
    """A party's share of an extended value times a masked one of each row; see `gates.times`.

    x: A, rho and v [..., d]. y: Y and r [..., 1]. dealt: p, t [..., d]. rings: narrow and wide
    bits.
    """
    kernel = native.KERNEL
    (array, rho, top), (factor, mask), (p, t), (narrow, wide) = x, y, dealt, rings
    if kernel is None:
        other = factor - mask if is_first else -mask
        upper = (widen(t, wide) * top) << array.dtype.type(narrow)
        return wrap(p - rho * factor + array * other - upper, wide)
    out = np.empty(array.shape, array.dtype)
    kernel.call(
        "times", t.itemsize, array.itemsize, factor.size, array.shape[-1], narrow, wide, is_first,
        contiguous(array), contiguous(rho), contiguous(top), contiguous(factor),
        contiguous(mask), contiguous(p), contiguous(t), out,
    )  # fmt: skip
    return out


def squares(
    x: tuple[Array, Array, Array],
    dealt: tuple[Array, Array],
    rings: tuple[int, int],
    is_first: bool,
) -> Array:
    """A party's share of each row's sum of squares; see `gates.squares`.

    x: A, rho and v [..., d]. dealt: the masks' sums of squares [..., 1], and q [..., d].
    """
    kernel = native.KERNEL
    (array, rho, top), (s, q), (narrow, wide) = x, dealt, rings
    if kernel is None:
        word = array.dtype.type
        twice = word(2) * rho
        products = array * (array - twice if is_first else -twice)
        upper = (widen(q, wide) * top).sum(axis=-1, keepdims=True, dtype=word)
        total = products.sum(axis=-1, keepdims=True, dtype=word)
        return wrap(s + total + (upper << word(narrow)), wide)
    out = np.empty(s.shape, array.dtype)
    kernel.call(
        "squares", q.itemsize, array.itemsize, s.size, array.shape[-1], narrow, wide, is_first,
        contiguous(array), contiguous(rho), contiguous(top), contiguous(s), contiguous(q), out,
    )  # fmt: skip
    return out
