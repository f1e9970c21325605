"""The operations that a network is written in.

`Operations(machine)` has one method per gate, and carries it out as that machine's part of the
gate. So the network is one text for the tracer, the dealer, both parties and the twin, and they
cannot disagree about the order of anything in it.

Only `open` and `reveal` are rounds, and are yielded from; all else is local.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, final

import numpy as np

from veilrun.mpc.arithmetic import less_columns
from veilrun.mpc.gates import (
    constant,
    exponential,
    extend,
    interpolate,
    lift,
    linear,
    lookup,
    product,
    reveal,
    shrink,
    squares,
    times,
    value,
)
from veilrun.mpc.gates import (
    open as opening,
)
from veilrun.mpc.gates.linear import Term
from veilrun.mpc.gates.open import Opened
from veilrun.mpc.gates.reveal import Revealed
from veilrun.mpc.machines.dealer import Dealer
from veilrun.mpc.machines.party import Party
from veilrun.mpc.machines.tracer import Tracer
from veilrun.mpc.machines.twin import Twin
from veilrun.mpc.plan import Shape
from veilrun.mpc.shares import Extended, Masked, Shared
from veilrun.mpc.tables import ExpTable, LinearTable
from veilrun.transport.rounds import Protocol

Machine = Tracer | Dealer | Party | Twin

NO_ANCHOR: Final = "none"
PREVIOUS: Final = "previous"
FIRST: Final = "first"
ANCHORS: Final = (NO_ANCHOR, PREVIOUS, FIRST)
"""What a head's rows of scores may be taken relative to: nothing, the token before, the first
token. Softmax does not see it; a head that mostly attends there has row sums that are alike."""

_PART: Final[dict[type, str]] = {Tracer: "trace", Dealer: "deal", Party: "run", Twin: "plain"}


@final
class Operations:
    """machine: whose part of each gate is carried out."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self._name = _PART[type(machine)]

    def open(self, *values: Shared) -> Protocol[Opened]:
        """One round: each value masked."""
        opened: Protocol[Opened] = self._part(opening, *values)
        return opened

    def reveal(self, *values: Shared) -> Protocol[Revealed]:
        """One round: the values, to party 1 only."""
        revealed: Protocol[Revealed] = self._part(reveal, *values)
        return revealed

    def constant(self, name: str, shape: Shape, bits: int) -> Shared:
        """The first rows of a private constant."""
        return self._shared(constant, name, shape, bits)

    def linear(self, *terms: Term) -> Shared:
        """The sum of x W + b over the terms (x, name of W)."""
        return self._shared(linear, *terms)

    def product(self, x: Masked, y: Masked) -> Shared:
        """x y, batched matrices."""
        return self._shared(product, x, y)

    def lookup(self, name: str, *inputs: Masked) -> Shared:
        """The function of that table at the inputs, which were opened with `opened_bits`."""
        table = self.machine.tables[name]
        gate: Any = lookup
        if isinstance(table, LinearTable):
            gate = interpolate
        elif isinstance(table, ExpTable):
            gate = exponential
        return self._shared(gate, name, table, *inputs)

    def index(self, z: Shared, name: str) -> Shared:
        """z in the ring that the table is opened in."""
        return self.shrink(z, z.bits - self.machine.tables[name].opened_bits)

    def shrink(self, z: Shared, by: int) -> Shared:
        """z / 2^by in a ring smaller by as many bits."""
        return self._shared(shrink, z, by)

    def lift(self, z: Shared) -> Shared:
        """z + 2^(bits - 2), to be opened and extended."""
        return self._shared(lift, z)

    def extend(self, x: Masked, bits: int) -> Extended:
        """What was lifted and opened, in a wider ring."""
        extended: Extended = self._part(extend, x, bits)
        return extended

    def value(self, x: Extended) -> Shared:
        """x as a shared value."""
        return self._shared(value, x)

    def times(self, x: Extended, y: Masked) -> Shared:
        """x y, elementwise."""
        return self._shared(times, x, y)

    def squares(self, x: Extended) -> Shared:
        """The sum of squares along the last axis, which stays with length 1."""
        return self._shared(squares, x)

    # Local algebra: each machine does to its part what is to be done to the value. The twin keeps
    # sums whole, to see at the next `window` whether they fit.

    def add(self, a: Shared, b: Shared) -> Shared:
        """a + b in one ring; b may have axes of length 1, which are repeated."""
        if isinstance(self.machine, Tracer | Dealer):
            return a
        if isinstance(self.machine, Party):
            return Shared(self.machine.arithmetic.add(a.array, b.array, a.bits), a.bits)
        return Shared(a.array + b.array, a.bits)

    def joined(self, parts: Sequence[Shared], axis: int) -> Shared:
        """Values of one ring side by side."""
        arrays, bits = [part.array for part in parts], parts[0].bits
        if isinstance(self.machine, Party):
            return Shared(self.machine.arithmetic.join(arrays, axis), bits)
        return Shared(np.concatenate(arrays, axis), bits)

    def sum(self, z: Shared, axis: int) -> Shared:
        """The sum along an axis, which stays with length 1."""
        if isinstance(self.machine, Tracer | Dealer):
            return z.moved(lambda array: array.take([0], axis))
        if isinstance(self.machine, Party):
            return Shared(self.machine.arithmetic.sum(z.array, axis, z.bits), z.bits)
        return Shared(z.array.sum(axis=axis, keepdims=True), z.bits)

    def anchored(self, scores: Shared, anchors: Sequence[str]) -> Shared:
        """Each head's rows less their own entry at its anchor, [n_heads, n, n]; see `ANCHORS`."""
        if isinstance(self.machine, Tracer | Dealer):
            return scores
        rows = np.arange(scores.shape[1])
        column_of = {PREVIOUS: np.maximum(rows - 1, 0), FIRST: 0 * rows}
        columns = [column_of.get(anchor) for anchor in anchors]
        if isinstance(self.machine, Party):
            array = self.machine.arithmetic.less_columns(scores.array, columns, scores.bits)
            return Shared(array, scores.bits)
        return Shared(less_columns(scores.array, columns), scores.bits)

    def window(self, z: Shared, bits: int, where: str, *, is_signed: bool = True) -> Shared:
        """z in a ring no larger, in which it must fit: each party drops its upper bits, and no
        round is needed. The twin reports what does not fit.
        """
        if isinstance(self.machine, Tracer | Dealer):
            return Shared(z.array, bits)
        if isinstance(self.machine, Party):
            return Shared(self.machine.arithmetic.window(z.array, z.bits, bits), bits)
        return self.machine.in_ring(z.array, bits, where, is_signed=is_signed)

    def _shared(self, gate: Any, *operands: Any) -> Shared:
        shared: Shared = self._part(gate, *operands)
        return shared

    def _part(self, gate: Any, *operands: Any) -> Any:
        return getattr(gate, self._name)(self.machine, *operands)
