"""Widths of the fixed point: public, and the same for every model and layer.

A profile says how many bits each ring, window and index has. Which reals fill a window is up to
the model: real scales are folded into the private matrices (`model.quantise`), which costs
nothing, and the tables' grids follow. Tables are public, and with them what their grids tell: how
wide the windows of scores, GELU and the classifier's activation are in reals, and, as far as it
shows, a norm's epsilon in units of its rows.

`w16a8`  Z_2^32, no retraining. Normalised rows have 8 fraction bits, GELU's outputs 10. Weights
         of `out`, `down` and the classifier's output are kept within 16 bits; all others are as
         large as their windows make them, and are refused beyond 32.
`w1a4`   weights of one bit and a level, activations of about 4 bits, Z_2^16. Needs retraining;
         `model.binary` says what has how many bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from veilrun.errors import UsageError


@dataclass(frozen=True, slots=True)
class Rings:
    """Bits of rings.

    linear: of linear layers and of what enters them. wide: of products with a reciprocal.
    scores: of q k. values: of attention values before they are extended to linear. hidden: of
    the residual sum, and of the context before it is normalised, before they are extended to
    wide.
    """

    linear: int
    wide: int
    scores: int
    values: int
    hidden: int


@dataclass(frozen=True, slots=True)
class Windows:
    """Bits of the rings out of which an index is taken; what is indexed must fit."""

    gelu: int
    row_sum: int
    variance: int
    head: int


@dataclass(frozen=True, slots=True)
class Lookups:
    """Of one table: bits of the index; bits below it that are opened too, 0 for a step table."""

    index_bits: int
    low_bits: int = 0

    @property
    def opened_bits(self) -> int:
        return self.index_bits + self.low_bits


@dataclass(frozen=True, slots=True)
class Functions:
    """How each function is looked up. With low bits, exp is exact and the others linear."""

    exp: Lookups
    gelu: Lookups
    row_sum: Lookups
    variance: Lookups
    head: Lookups


@dataclass(frozen=True, slots=True)
class Profile:
    """A choice of widths, by name.

    x_fraction: fraction bits of normalised rows.
    gelu_fraction: fraction bits of GELU's outputs, and of the classifier's activation.
    values_shift, hidden_shift: bits dropped from a linear ring before the value is opened in its
    narrow ring; hidden_shift from the residual sum, and from the context before it is normalised.
    """

    name: str
    rings: Rings
    windows: Windows
    functions: Functions
    x_fraction: int
    gelu_fraction: int

    @property
    def values_shift(self) -> int:
        return self.rings.linear - self.rings.values

    @property
    def hidden_shift(self) -> int:
        return self.rings.linear - self.rings.hidden

    @property
    def wide_shift(self) -> int:
        """Bits dropped from a product with a reciprocal."""
        return self.rings.wide - self.rings.linear


W16A8: Final = Profile(
    "w16a8",
    Rings(linear=32, wide=48, scores=16, values=20, hidden=24),
    Windows(gelu=26, row_sum=18, variance=44, head=26),
    Functions(
        exp=Lookups(6, 10),
        gelu=Lookups(6, 4),
        row_sum=Lookups(11, 7),
        variance=Lookups(11, 11),
        head=Lookups(8, 6),
    ),
    x_fraction=8,
    gelu_fraction=10,
)
W1A4: Final = Profile(
    "w1a4",
    Rings(linear=16, wide=32, scores=10, values=10, hidden=16),
    Windows(gelu=16, row_sum=10, variance=32, head=16),
    Functions(
        exp=Lookups(5), gelu=Lookups(5), row_sum=Lookups(8), variance=Lookups(10), head=Lookups(8)
    ),
    x_fraction=2,
    gelu_fraction=3,
)

PROFILES: Final[Mapping[str, Profile]] = {p.name: p for p in (W16A8, W1A4)}


def profile_of(name: str) -> Profile:
    """The profile of this name.

    Raises:
        UsageError: there is none.
    """
    if name not in PROFILES:
        raise UsageError(f"no profile {name!r}; there are: {', '.join(PROFILES)}")
    return PROFILES[name]
