"""Products of two masked values: Z = x y, batched matrices. No round.

    offline   c = m_x m_y, shared in the ring
    online    P1: X (Y - m_y1) - m_x1 Y + c_1
              P2: X (  - m_y2) - m_x2 Y + c_2

    sum: X Y - X m_y - m_x Y + m_x m_y = (X - m_x)(Y - m_y) = x y. Exact in the ring.

Both products of a party are one: [X | -m_x] against [Y' ; Y].
Source: Beaver 1991, with masks that the dealer knows already from the openings.
"""

from __future__ import annotations

import numpy as np

from veilrun.mpc.arithmetic import Direct
from veilrun.mpc.machines.dealer import Dealer
from veilrun.mpc.machines.party import Party
from veilrun.mpc.machines.tracer import Tracer
from veilrun.mpc.machines.twin import Twin
from veilrun.mpc.plan import Share
from veilrun.mpc.shares import Masked, Shared


def trace(machine: Tracer, x: Masked, y: Masked) -> Shared:
    shape = (*x.shape[:-1], y.shape[-1])
    machine.want(Share(shape, x.bits))
    return machine.shared(shape, x.bits)


def deal(machine: Dealer, x: Masked, y: Masked) -> Shared:
    return machine.share(Direct().matmul(x.mask, y.mask), x.bits)


def run(machine: Party, x: Masked, y: Masked) -> Shared:
    a, bits = machine.arithmetic, x.bits
    right = a.subtract(y.array, y.mask, bits) if machine.is_first else a.negate(y.mask, bits)
    product = a.matmul(
        a.join([x.array, a.negate(x.mask, bits)], axis=-1),
        a.join([right, y.array], axis=-2),
    )
    return Shared(a.add(product, machine.take(), bits), bits)


def plain(machine: Twin, x: Masked, y: Masked) -> Shared:
    value = np.matmul(x.array.astype(np.float64), y.array.astype(np.float64)).astype(np.int64)
    return Shared(value, x.bits)  # what is made of it must fit; it need not
