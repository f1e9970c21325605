"""Revealing: shared values become known to party 1, and to nobody else. One round, one direction.

online    party 2 sends z_2
"""

from __future__ import annotations

import numpy as np

from veilrun.mpc import ring
from veilrun.mpc.gates.open import split
from veilrun.mpc.machines.dealer import Dealer
from veilrun.mpc.machines.party import Party
from veilrun.mpc.machines.tracer import Tracer
from veilrun.mpc.machines.twin import Twin
from veilrun.mpc.plan import Opening
from veilrun.mpc.shares import Array, Shared, signed
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
        frame = b"".join(ring.pack_bits(z.array, z.bits) for z in values)
        yield Round({machine.peer: frame}, awaited=frozenset())
        return None
    inbox = yield Round({}, awaited=frozenset({machine.peer}))
    theirs = split(inbox[machine.peer], values)
    return tuple(
        signed(ring.add_packed(z.array, np.zeros_like(z.array), part, z.bits), z.bits)
        for z, part in zip(values, theirs, strict=True)
    )


def plain(machine: Twin, *values: Shared) -> Protocol[Revealed]:
    yield from ()
    return tuple(z.array for z in values)
