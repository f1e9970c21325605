"""Public look-up tables, of three kinds, and their guards.

An index I = i + D mod 2^n is opened under a mask D that the dealer knows. Scales that are private
belong in the weights before and after, so tables are public, and point functions can compress
their one-time copies. What is opened has `opened_bits` bits; the upper `index_bits` of them
select an entry, and the lower `low_bits` say where in the step the value lies.

* `StepTable`: the entry itself. No low bits. Any function, at the resolution of its grid.
* `LinearTable`: a straight line for each entry. Smooth functions, at a resolution far finer than
  the grid.
* `ExpTable`: e^x, exactly: the step by table, the rest by the law of exponents.

The guard of a table is 1 where an index lies in the outer part of the window that calibration
left free. It costs nothing to deal. Its sum over all that a gate looks up is revealed to the
client only, and tells how many values came near the end of their window.

Guarded: row sums, sums of squares, the classifier's activation, and GELU, wherever its table goes
by keys. A signed value up to 15 % beyond its window is flagged too: it comes back at the other end.

Not guarded, so that an overflow there is silent:

* what comes back in the inner part of its window: a signed value further out; a row sum or a sum
  of squares just past the end, which comes back near 0;
* one-time tables, which no key reads: in `w1a4` GELU and e^x;
* scores: the keys of an `ExpTable` carry another payload;
* what no table reads: queries, keys and attention values, the context and the residual sum before
  they are extended, logits and pooled sums.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np

from veilrun.mpc import dpf
from veilrun.mpc.dpf import Domain, Rows
from veilrun.mpc.shares import Array, dtype_of

FLAG_BITS: Final = 32
"""The ring in which values near the end of their window are counted, where the keys' is as wide."""


@dataclass(frozen=True, eq=False)
class StepTable:
    """values: [2^n], or [2^n, 2^m] for two inputs, in Z_2^bits. guard: the same shape, or None."""

    values: Array
    bits: int
    guard: Array | None = None

    @property
    def index_bits(self) -> tuple[int, ...]:
        """Of each input."""
        return tuple(length.bit_length() - 1 for length in self.values.shape)

    @property
    def opened_bits(self) -> int:
        """Of each input; the first, where they differ."""
        return self.index_bits[0]

    @cached_property
    def domain(self) -> Domain:
        """Of the point function over all inputs together."""
        return Domain(sum(self.index_bits), 8 * dtype_of(self.bits).itemsize)

    @property
    def by_keys(self) -> bool:
        """Whether point functions, sent to both parties, are fewer bytes than one-time tables."""
        plain_bytes = self.values.size * dtype_of(self.bits).itemsize
        return 2 * self.domain.correction_bytes <= plain_bytes

    @property
    def flag_bits(self) -> int:
        """Of the guard's count."""
        return min(FLAG_BITS, self.domain.out_bits)

    @cached_property
    def rows(self) -> Rows:
        """The table, and its guard, ready to be looked up by keys."""
        both = [self.values] if self.guard is None else [self.values, self.guard]
        return dpf.unroll(np.stack(both), self.domain)


@dataclass(frozen=True, eq=False)
class LinearTable:
    """f(x) = (values[i] + slopes[i] (x - i 2^low_bits)) / 2^extra_bits for x near entry i.

    x counts units of which a step has 2^low_bits. Which of the two entries around x is taken
    depends on the mask, so each line holds for a step to either side.

    values, slopes: [2^n] in Z_2^(bits + extra_bits). bits: of the result. guard: [2^n], or None.
    """

    values: Array
    slopes: Array
    bits: int
    low_bits: int
    extra_bits: int = 0
    guard: Array | None = None

    @property
    def index_bits(self) -> int:
        return len(self.values).bit_length() - 1

    @property
    def opened_bits(self) -> int:
        return self.index_bits + self.low_bits

    @cached_property
    def domain(self) -> Domain:
        """Of point functions with two payloads: 1, and the mask's low bits."""
        return Domain(self.index_bits, 8 * self.values.dtype.itemsize, n_payloads=2)

    @property
    def flag_bits(self) -> int:
        """Of the guard's count."""
        return min(FLAG_BITS, self.domain.out_bits)

    @cached_property
    def rows(self) -> Rows:
        """Values and slopes, slopes for the second payload, and the guard."""
        three = [self.values, self.slopes, self.slopes]
        if self.guard is None:
            return dpf.unroll(np.stack(three), self.domain, (0, 0, 1))
        return dpf.unroll(np.stack([*three, self.guard]), self.domain, (0, 0, 1, 0))


@dataclass(frozen=True, eq=False)
class ExpTable:
    """e^x = values[i] e^(X_low) e^(-m_low) / 2^extra_bits, with X = x + m opened.

    One unit of x is `unit` in the exponent. Both factors are rounded to `factor_bits` bits after
    the point, the first by the parties, the second by the dealer, as the payload.

    values: [2^n] in Z_2^(bits + extra_bits), with the rest of extra_bits after the point. bits:
        of the result.
    """

    values: Array
    unit: float
    bits: int
    low_bits: int
    extra_bits: int
    factor_bits: int

    @property
    def index_bits(self) -> int:
        return len(self.values).bit_length() - 1

    @property
    def opened_bits(self) -> int:
        return self.index_bits + self.low_bits

    @cached_property
    def domain(self) -> Domain:
        """Of point functions with one payload: e^(-m_low)."""
        return Domain(self.index_bits, 8 * self.values.dtype.itemsize)

    @cached_property
    def rows(self) -> Rows:
        """The entries."""
        return dpf.unroll(self.values[None], self.domain)

    @cached_property
    def rising(self) -> Array:
        """e^(low unit) for every value of the low bits, with factor_bits after the point."""
        return self._factors(+1)

    @cached_property
    def falling(self) -> Array:
        """e^(-low unit), likewise."""
        return self._factors(-1)

    def _factors(self, sign: int) -> Array:
        exponents = sign * np.arange(2**self.low_bits, dtype=np.float64) * self.unit
        scaled = np.rint(np.exp(exponents) * 2.0**self.factor_bits)
        result: Array = scaled.astype(self.values.dtype)
        return result


Table = StepTable | LinearTable | ExpTable
