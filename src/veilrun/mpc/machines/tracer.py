"""The machine that only looks at shapes, and writes down what everybody will need."""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

import numpy as np

from veilrun.mpc.plan import Correlation, Opening, Plan, Shape
from veilrun.mpc.shares import Array, Extended, Masked, Shared
from veilrun.mpc.tables import Table


def hollow(shape: Shape) -> Array:
    """An array of this shape that takes no memory; its elements mean nothing."""
    return np.broadcast_to(np.uint8(0), shape)


@final
class Tracer:
    """n_outputs: of each matrix, by name. tables: public. The result is `plan`."""

    def __init__(self, outputs: Mapping[str, int], tables: Mapping[str, Table]) -> None:
        self.tables = tables
        self.plan = Plan()
        self.flags: list[tuple[str, Shared]] = []
        self._outputs = outputs

    def flag(self, name: str, n_flagged: Shared) -> None:
        """Keep the count of a table's guard for the end."""
        self.flags.append((name, n_flagged))

    def n_outputs(self, name: str) -> int:
        return self._outputs[name]

    def want(self, correlation: Correlation) -> None:
        """The next correlation, in the order of use."""
        self.plan.correlations.append(correlation)

    def opened(self, opening: Opening) -> None:
        """The next round."""
        self.plan.openings.append(opening)

    def shared(self, shape: Shape, bits: int) -> Shared:
        return Shared(hollow(shape), bits)

    def masked(self, shape: Shape, bits: int) -> Masked:
        return Masked(hollow(shape), hollow(shape), bits)

    def extended(self, shape: Shape, bits: int, narrow_bits: int) -> Extended:
        return Extended(hollow(shape), hollow(shape), hollow(shape), bits, narrow_bits)
