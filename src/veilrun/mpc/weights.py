"""Linear maps over rings: dense, and the diagonal-plus-mean of a residual. Whole or a share.

Products distribute over shares, so a party uses the same classes as the dealer, on its share.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol as Interface
from typing import final

import numpy as np

from veilrun.mpc import ring
from veilrun.mpc.shares import Array


class Matrix(Interface):
    """A linear map in its operand's ring. bias: None for a share, and where there is none."""

    @property
    def bias(self) -> Array | None: ...

    def times(self, x: Array) -> Array:
        """[n, n_in] -> [n, n_out]."""


@final
@dataclass(frozen=True, slots=True, eq=False)
class Dense:
    """x W. weight: packed [n_in, n_out]; bias: [n_out] in the same ring."""

    weight: ring.Packed
    bias: Array | None = None
    n_threads: int = 1

    def times(self, x: Array) -> Array:
        return ring.matmul(x, self.weight, n_threads=self.n_threads)


@final
@dataclass(frozen=True, slots=True, eq=False)
class Residual:
    """x gain - x column: an elementwise gain, less one weighted mean. gain, column: [n]."""

    gain: Array
    column: Array
    bias: Array | None = None

    def times(self, x: Array) -> Array:
        mean = (x * self.column).sum(axis=-1, keepdims=True, dtype=x.dtype)
        result: Array = x * self.gain - mean
        return result


@final
@dataclass(frozen=True, slots=True, eq=False)
class Exact:
    """x W over the integers, by float64: exact below 2^53. weight: float64 [n_in, n_out]."""

    weight: Array
    bias: Array | None = None

    def times(self, x: Array) -> Array:
        product: Array = np.matmul(x.astype(np.float64), self.weight).astype(np.int64)
        return product


@final
@dataclass(frozen=True, slots=True, eq=False)
class ExactResidual:
    """x gain - x column over the integers. gain, column: int64 [n]."""

    gain: Array
    column: Array
    bias: Array | None = None

    def times(self, x: Array) -> Array:
        result: Array = x * self.gain - (x * self.column).sum(axis=-1, keepdims=True)
        return result
