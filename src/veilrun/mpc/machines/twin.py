"""The plaintext twin: the same network on the integers themselves, with the same rounding.

It predicts what the protocol answers, bit for bit, once it is told party 1's low bits at each
rounding (`watch_rounding` of the party); left alone it draws them uniformly, which is what they
are. It also sees what no party can: whether a value left the range that was calibrated for it.

Used by whoever holds the model and the text in the clear: to calibrate, to measure accuracy
without the cost of a protocol, and to test.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import final

import numpy as np

from veilrun.mpc.plan import Shape
from veilrun.mpc.shares import Array, Shared
from veilrun.mpc.tables import Table
from veilrun.mpc.weights import Matrix

LowBits = Callable[[Shape, int], Array]
"""(shape, bits) -> the low bits that decide the next rounding, int64 below 2^bits: of party 1's
share where a value is shrunk, of the whole mask where a function is interpolated."""


@dataclass(frozen=True, slots=True)
class Overflow:
    """Values that left their range. largest: the greatest magnitude in units of the range."""

    where: str
    n_values: int
    largest: float


def uniform_low_bits(seed: int) -> LowBits:
    """What party 1's low bits look like; nothing secret hangs on it."""
    generator = np.random.default_rng(seed)
    return lambda shape, bits: generator.integers(0, 1 << bits, shape)


@final
class Twin:
    """One inference in the clear. matrices, constants: whole, int64. overflows: found so far."""

    def __init__(
        self,
        matrices: Mapping[str, Matrix],
        constants: Mapping[str, Array],
        tables: Mapping[str, Table],
        low_bits: LowBits,
    ) -> None:
        self.matrices = matrices
        self.constants = constants
        self.tables = tables
        self.low_bits = low_bits
        self.flags: list[tuple[str, Shared]] = []
        self.overflows: list[Overflow] = []

    def flag(self, name: str, n_flagged: Shared) -> None:
        """Keep the count of a table's guard for the end."""
        self.flags.append((name, n_flagged))

    def in_ring(self, value: Array, bits: int, what: str, *, is_signed: bool = True) -> Shared:
        """The value as the ring holds it; one that does not fit wraps, and is reported."""
        half = 1 << (bits - 1)
        low, high = (-half, half) if is_signed else (0, 2 * half)
        if value.size and (value.min() < low or value.max() >= high):
            self._report(value, low, high, what)
            value = (value - low) % (2 * half) + low
        return Shared(value, bits)

    def check(self, z: Shared, bits: int, what: str) -> Shared:
        """Report a value that needs more than `bits` bits, although its ring holds it."""
        half = 1 << (bits - 1)
        if z.array.size and (z.array.min() < -half or z.array.max() >= half):
            self._report(z.array, -half, half, what)
        return z

    def _report(self, value: Array, low: int, high: int, what: str) -> None:
        outside = (value < low) | (value >= high)
        largest = float(np.abs(value.astype(np.float64)).max() / max(abs(low), high))
        self.overflows.append(Overflow(what, int(outside.sum()), largest))
