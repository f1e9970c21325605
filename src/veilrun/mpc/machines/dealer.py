"""The dealer, P0: knows weights, tables and masks, acts before there is an input.

It walks the network with masks in place of values, and writes for each party what that party
cannot draw from its own stream. It never learns anything about an input: it is gone by then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import final

from veilrun.mpc import dpf, ring
from veilrun.mpc.dpf import Domain
from veilrun.mpc.machines.tracer import hollow
from veilrun.mpc.plan import Shape
from veilrun.mpc.prg import Stream
from veilrun.mpc.shares import Array, Masked, Shared, wrap
from veilrun.mpc.tables import Table
from veilrun.mpc.weights import Matrix

Write = Callable[[bytes | memoryview], object]


@final
class Dealer:
    """One inference's dealing.

    matrices, constants: the private weights, whole. streams: shared with party 1 and 2.
    write_1, write_2: take each party's material, in order. tweak: 16 public bytes, the
    inference's own, for the hash in the point functions.
    """

    def __init__(
        self,
        matrices: Mapping[str, Matrix],
        constants: Mapping[str, Array],
        tables: Mapping[str, Table],
        streams: tuple[Stream, Stream],
        writes: tuple[Write, Write],
        tweak: bytes,
    ) -> None:
        self.matrices = matrices
        self.constants = constants
        self.tables = tables
        self.flags: list[tuple[str, Shared]] = []
        self._streams = streams
        self._writes = writes
        self._tweak = tweak

    def mask(self, shape: Shape, bits: int) -> Masked:
        """A fresh mask, the sum of the parties' halves, over a value that is not known yet.

        `array` holds party 1's half here, which `carry` wants.
        """
        first, second = (stream.uniform(shape, bits) for stream in self._streams)
        return Masked(first, wrap(first + second, bits), bits)

    def carry(self, x: Masked) -> Array:
        """1 where the halves of the mask add up to 2^bits or more: the sum came out smaller."""
        result: Array = x.mask < x.array
        return result

    def share(self, value: Array, bits: int) -> Shared:
        """Halve a value: party 1's half is its stream's, party 2 is sent the rest."""
        first = self._streams[0].uniform(value.shape, bits)
        second = wrap(value.astype(first.dtype, copy=False) - first, bits)
        self._writes[1](ring.pack_bits(second, bits))
        return self.unknown(value.shape, bits)

    def keys(self, points: Array, domain: Domain, payloads: Array | None = None) -> None:
        """Point functions at `points`; both parties are sent the corrections.

        payloads: [n_payloads, n]; None for ones.
        """
        first, second = (stream.seeds(len(points)) for stream in self._streams)
        corrections = dpf.generate(points, first, second, domain, self._tweak, payloads)
        for write in self._writes:
            write(corrections.data)

    def unknown(self, shape: Shape, bits: int) -> Shared:
        """A value that depends on the input: the dealer has its shape only."""
        return Shared(hollow(shape), bits)
