"""Revealing: shared values become known to party 1, and to nobody else. One round, one direction.

online    party 2 sends z_2
"""

from __future__ import annotations

from veilrun.mpc.machines.dealer import Dealer
from veilrun.mpc.machines.party import Party
from veilrun.mpc.machines.tracer import Tracer
from veilrun.mpc.machines.twin import Twin
from veilrun.mpc.plan import Opening
from veilrun.mpc.shares import Array, Shared
from veilrun.transport.rounds import Protocol, Round

Revealed = tuple[Array, ...] | None
"""The signed integers, int64; None for whoever is not told."""


def trace(machine: Tracer, *values: Shared) -> Protocol[Revealed]:
    machine.opened(Opening(tuple((z.shape, z.bits) for z in values), is_mutual=False))
    yield from ()
    return None


def deal(machine: Dealer, *values: Shared) -> Protocol[Revealed]:
    yield from ()
    return None


def run(machine: Party, *values: Shared) -> Protocol[Revealed]:
    if not machine.is_first:
        yield Round({machine.peer: machine.arithmetic.packed(values, ())}, awaited=frozenset())
        return None
    inbox = yield Round({}, awaited=frozenset({machine.peer}))
    opened = machine.arithmetic.opened(inbox[machine.peer], values, ())
    return tuple(
        machine.arithmetic.result(array, z.bits) for z, array in zip(values, opened, strict=True)
    )


def plain(machine: Twin, *values: Shared) -> Protocol[Revealed]:
    yield from ()
    return tuple(z.array for z in values)
