"""Opening: any number of shared values become masked ones. One round; the one gate that talks.

offline   masks m_i, from streams; nothing is sent
online    each party sends z_i + m_i; Z is the sum. b bits per element and direction
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from veilrun.errors import DecodeError
from veilrun.mpc import ring
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
    mine = (ring.pack_sum(z.array, mask, z.bits) for z, mask in zip(values, masks, strict=True))
    inbox = yield Round({machine.peer: b"".join(mine)})
    theirs = split(inbox[machine.peer], values)
    return tuple(
        Masked(ring.add_packed(z.array, mask, part, z.bits), mask, z.bits)
        for z, mask, part in zip(values, masks, theirs, strict=True)
    )


def plain(machine: Twin, *values: Shared) -> Protocol[Opened]:
    yield from ()
    return tuple(Masked(z.array, z.array, z.bits) for z in values)


def split(frame: bytes, values: Sequence[Shared]) -> list[memoryview]:
    """The part of each value."""
    sizes = [(z.array.size * z.bits + 7) // 8 for z in values]
    if len(frame) != sum(sizes):
        raise DecodeError(f"an opening of {len(frame)} bytes where {sum(sizes)} are due")
    view = memoryview(frame)
    return [view[end - size : end] for size, end in zip(sizes, accumulate(sizes), strict=True)]
