"""Opening: any number of shared values become masked ones. One round; the one gate that talks.

offline   masks m_i, from streams; nothing is sent
online    each party sends z_i + m_i; Z is the sum. b bits per element and direction
"""

from __future__ import annotations

from veilrun.mpc.machines.dealer import Dealer
from veilrun.mpc.machines.party import Party
from veilrun.mpc.machines.tracer import Tracer
from veilrun.mpc.machines.twin import Twin
from veilrun.mpc.plan import Mask, Opening
from veilrun.mpc.shares import Masked, Shared
from veilrun.transport.rounds import Protocol, Round

Opened = tuple[Masked, ...]


def trace(machine: Tracer, *values: Shared) -> Protocol[Opened]:
    for z in values:
        machine.want(Mask(z.shape, z.bits))
    machine.opened(Opening(tuple((z.shape, z.bits) for z in values)))
    yield from ()
    return tuple(machine.masked(z.shape, z.bits) for z in values)


def deal(machine: Dealer, *values: Shared) -> Protocol[Opened]:
    yield from ()
    return tuple(machine.mask(z.shape, z.bits) for z in values)


def run(machine: Party, *values: Shared) -> Protocol[Opened]:
    masks = [machine.take() for _ in values]
    inbox = yield Round({machine.peer: machine.arithmetic.packed(values, masks)})
    opened = machine.arithmetic.opened(inbox[machine.peer], values, masks)
    return tuple(
        Masked(array, mask, z.bits) for z, array, mask in zip(values, opened, masks, strict=True)
    )


def plain(machine: Twin, *values: Shared) -> Protocol[Opened]:
    yield from ()
    return tuple(Masked(z.array, z.array, z.bits) for z in values)
