"""Opening: any number of shared values become masked ones. One round; the one gate that talks.

offline   masks m_i, from streams; nothing is sent
online    each party sends z_i + m_i; Z is the sum. b bits per element and direction
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from veilrun.errors import DecodeError
from veilrun.mpc import elementwise, ring
from veilrun.mpc.machines.dealer import Dealer
from veilrun.mpc.machines.party import Party
from veilrun.mpc.machines.tracer import Tracer
from veilrun.mpc.machines.twin import Twin
from veilrun.mpc.plan import Mask, Opening, packed_bytes
from veilrun.mpc.shares import Array, Masked, Shared, dtype_of
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
    mine = [elementwise.add(z.array, mask, z.bits) for z, mask in zip(values, masks, strict=True)]
    inbox = yield Round({machine.peer: pack(mine, values)})
    theirs = unpack(inbox[machine.peer], values)
    return tuple(
        Masked(elementwise.add(a, b, z.bits), mask, z.bits)
        for a, b, mask, z in zip(mine, theirs, masks, values, strict=True)
    )


def plain(machine: Twin, *values: Shared) -> Protocol[Opened]:
    yield from ()
    return tuple(Masked(z.array, z.array, z.bits) for z in values)


def pack(arrays: Iterable[Array], values: Sequence[Shared]) -> bytes:
    return b"".join(
        ring.pack_bits(np.ascontiguousarray(array), z.bits)
        for array, z in zip(arrays, values, strict=True)
    )


def unpack(frame: bytes, values: Sequence[Shared]) -> list[Array]:
    n_bytes = sum(packed_bytes(z.shape, z.bits) for z in values)
    if len(frame) != n_bytes:
        raise DecodeError(f"an opening of {len(frame)} bytes where {n_bytes} are due")
    arrays = []
    begin = 0
    view = memoryview(frame)
    for z in values:
        end = begin + packed_bytes(z.shape, z.bits)
        n_values = int(np.prod(z.shape, dtype=np.int64))
        words = ring.unpack_bits(view[begin:end], z.bits, n_values, dtype_of(z.bits))
        arrays.append(words.reshape(z.shape))
        begin = end
    return arrays
