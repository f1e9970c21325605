"""The values of a protocol, in the two sharings, and rings of any width in numpy's dtypes.

A secret integer z in Z_2^bits is held as a

* `Shared`: z = z_1 + z_2 mod 2^bits, party i holds z_i; uniform on its own.
* `Masked`: Z = z + m mod 2^bits, both parties know Z, party i holds m_i with m_1 + m_2 = m, and
  the dealer, who is away by then, knew m. What is opened becomes this.
* `Extended`: a masked value carried into a wider ring; see `gates.extend`.

Signed numbers are two's complement. Each machine keeps in `array` (and `mask`) what it has of
the value: a party its share, the dealer masks and nothing else, the twin the integer itself,
the tracer only a shape. So the network is written once, for all of them.

Invariant: an array of a b-bit ring holds values below 2^b in the smallest of uint16, uint32 and
uint64 that fits; the twin alone holds signed int64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Rearrange = Callable[[Array], Array]
"""Moves elements and changes none: a reshape, a transposition, a slice."""


_DTYPES: Final = tuple(map(np.dtype, ("u2", "u2", "u4", "u8", "u8")))
"""By how many times 16 bits there are."""


def dtype_of(bits: int) -> np.dtype[Any]:
    """What holds an element of Z_2^bits, for 1 to 64 bits."""
    return _DTYPES[(bits + 15) // 16]


def wrap(array: Array, bits: int) -> Array:
    """The array mod 2^bits, in that ring's dtype. The array may be wider, never narrower."""
    dtype = dtype_of(bits)
    array = array.astype(dtype, copy=False)
    if bits == 8 * dtype.itemsize:
        return array
    result: Array = array & dtype.type((1 << bits) - 1)
    return result


def widen(array: Array, bits: int) -> Array:
    """The same non-negative integers as elements of a wider ring."""
    return array.astype(dtype_of(bits), copy=False)


def signed(array: Array, bits: int) -> npt.NDArray[np.int64]:
    """The two's complement reading of elements of Z_2^bits."""
    half = np.int64(1) << np.int64(bits - 1)
    values = array.astype(np.int64)
    if bits == 64:
        return values
    result: npt.NDArray[np.int64] = (values + half) % (half * 2) - half
    return result


@dataclass(frozen=True, slots=True, eq=False)
class Shared:
    """z = z_1 + z_2 mod 2^bits. array: this machine's part, any shape."""

    array: Array
    bits: int

    def moved(self, rearrange: Rearrange) -> Shared:
        """The same elements in another shape or order."""
        return replace(self, array=rearrange(self.array))

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    def __repr__(self) -> str:  # a share in a log is half of a secret
        return f"Shared(shape={self.shape}, bits={self.bits})"

    def __bool__(self) -> bool:
        raise TypeError("a share has no truth value")


@dataclass(frozen=True, slots=True, eq=False)
class Masked:
    """Z = z + m mod 2^bits. array: Z, public to both parties; mask: this machine's part of m."""

    array: Array
    mask: Array
    bits: int

    def moved(self, rearrange: Rearrange) -> Masked:
        """The same elements in another shape or order."""
        return replace(self, array=rearrange(self.array), mask=rearrange(self.mask))

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    def __repr__(self) -> str:
        return f"Masked(shape={self.shape}, bits={self.bits})"

    def __bool__(self) -> bool:
        raise TypeError("a masked value has no truth value")


@dataclass(frozen=True, slots=True, eq=False)
class Extended:
    """A masked value of a narrow ring, exact in a wider one: z = A - rho, A public.

    array: A. mask: this machine's part of rho (the dealer's: of the narrow mask).
    top: where the sum may have wrapped, both parties: 1 where A's top bit is 0 (see
        `gates.extend`); the dealer's: the mask's own top bit.
    bits, narrow_bits: the two rings.
    """

    array: Array
    mask: Array
    top: Array
    bits: int
    narrow_bits: int

    def moved(self, rearrange: Rearrange) -> Extended:
        """The same elements in another shape or order."""
        return replace(
            self,
            array=rearrange(self.array),
            mask=rearrange(self.mask),
            top=rearrange(self.top),
        )

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    def __repr__(self) -> str:
        return f"Extended(shape={self.shape}, bits={self.bits})"

    def __bool__(self) -> bool:
        raise TypeError("a masked value has no truth value")
