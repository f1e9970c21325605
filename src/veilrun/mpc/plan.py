"""What an inference needs, before there is an input: correlations to deal and frames to exchange.

A plan follows from shapes and widths alone, so both parties, the dealer and the cost model get
the same one from the public part of the model (`machines.tracer` writes it). It is in the order
of use: the dealer deals in it, and a party takes in it.

Three kinds of correlation:

* `Mask`: each party its own uniform half of a mask; both from streams, nothing is sent.
* `Share`: a value the dealer knows, halved; party 1's half is a stream, party 2 is sent the rest.
* `Keys`: n distributed point functions; the roots are streams, both are sent the corrections.

Packing: elements of Z_2^b take b bits, each tensor ends on a whole byte.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from veilrun.mpc.dpf import Domain

Shape = tuple[int, ...]


def packed_bytes(shape: Shape, bits: int) -> int:
    """The bytes of a tensor of Z_2^bits on the wire."""
    return (math.prod(shape) * bits + 7) // 8


@dataclass(frozen=True, slots=True)
class Mask:
    """A uniform mask, of which each party draws its half."""

    shape: Shape
    bits: int


@dataclass(frozen=True, slots=True)
class Share:
    """A value that the dealer knows, of which each party gets a half."""

    shape: Shape
    bits: int


@dataclass(frozen=True, slots=True)
class Keys:
    """n_keys distributed point functions over `domain`."""

    n_keys: int
    domain: Domain


Correlation = Mask | Share | Keys


@dataclass(frozen=True, slots=True)
class Opening:
    """One round. tensors: (shape, bits) of each value opened in it.

    is_mutual: both parties send; else party 2 alone, to party 1.
    """

    tensors: tuple[tuple[Shape, int], ...]
    is_mutual: bool = True

    @property
    def frame_bytes(self) -> int:
        """Of one direction."""
        return sum(packed_bytes(shape, bits) for shape, bits in self.tensors)


@dataclass(frozen=True, slots=True)
class Bill:
    """Bytes and rounds of one inference. Dealer to party 1, to party 2; party 1 to 2, 2 to 1."""

    to_p1_bytes: int
    to_p2_bytes: int
    p1_to_p2_bytes: int
    p2_to_p1_bytes: int
    n_rounds: int

    @property
    def offline_bytes(self) -> int:
        return self.to_p1_bytes + self.to_p2_bytes

    @property
    def online_bytes(self) -> int:
        return self.p1_to_p2_bytes + self.p2_to_p1_bytes


@dataclass(slots=True)
class Plan:
    """Correlations in the order of their use, and openings in the order of rounds."""

    correlations: list[Correlation] = field(default_factory=list)
    openings: list[Opening] = field(default_factory=list)

    @property
    def bill(self) -> Bill:
        """What carrying this plan out costs, exactly."""
        keys = sum(_key_bytes(self.correlations))
        shares = sum(
            packed_bytes(c.shape, c.bits) for c in self.correlations if isinstance(c, Share)
        )
        return Bill(
            to_p1_bytes=keys,
            to_p2_bytes=keys + shares,
            p1_to_p2_bytes=sum(o.frame_bytes for o in self.openings if o.is_mutual),
            p2_to_p1_bytes=sum(o.frame_bytes for o in self.openings),
            n_rounds=len(self.openings),
        )


def _key_bytes(correlations: Iterable[Correlation]) -> Iterable[int]:
    return (c.n_keys * c.domain.correction_bytes for c in correlations if isinstance(c, Keys))
