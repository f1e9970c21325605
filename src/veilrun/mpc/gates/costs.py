"""What every gate costs, declared; a test holds each gate to its line.

Rounds; bits on the wire online, both directions together; bits from the dealer, to both parties
together. n is the number of elements, b a ring's bits, k and K those of a narrow and a wide ring.
What is drawn from a stream costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from veilrun.mpc.tables import ExpTable, LinearTable, StepTable


@dataclass(frozen=True, slots=True)
class GateCost:
    """online_bits: of both directions. offline_bits: to both parties."""

    n_rounds: int = 0
    online_bits: int = 0
    offline_bits: int = 0


def _keys(n: int, table: StepTable | LinearTable | ExpTable) -> GateCost:
    return GateCost(offline_bits=2 * n * 8 * table.domain.correction_bytes)


def _lookup(n: int, table: StepTable) -> GateCost:
    if table.by_keys:
        return _keys(n, table)
    return GateCost(offline_bits=n * table.values.size * 8 * table.values.dtype.itemsize)


COSTS: Final[Mapping[str, Callable[..., GateCost]]] = {
    "open": lambda n, b: GateCost(1, 2 * n * b),
    "reveal": lambda n, b: GateCost(1, n * b),
    "constant": lambda n, b: GateCost(offline_bits=n * b),
    "linear": lambda n_out, b: GateCost(offline_bits=n_out * b),
    "product": lambda n_out, b: GateCost(offline_bits=n_out * b),
    "shrink": lambda: GateCost(),
    "lift": lambda: GateCost(),
    "value": lambda: GateCost(),
    "extend": lambda n, k, K: GateCost(offline_bits=2 * n * (K - k)),
    "times": lambda n, k, K: GateCost(offline_bits=n * (K + K - k)),
    "squares": lambda n_rows, n, k, K: GateCost(offline_bits=n_rows * K + n * (K - k)),
    "lookup": _lookup,
    "interpolate": _keys,
    "exponential": _keys,
}
