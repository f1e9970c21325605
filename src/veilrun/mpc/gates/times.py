"""Rows of an extended value, each times a masked one: z y. No round.

With z = A - rho_v (see `extend`) and y = Y - r, where r and m, the narrow mask, are known to the
dealer and msb(m) is m's top bit:

    offline   p = m r in Z_2^K,  t = msb(m) r in Z_2^(K-k), shared
    online    P1: A (Y - r_1) - rho_1 Y + p_1 - v 2^k t_1
              P2: A (  - r_2) - rho_2 Y + p_2 - v 2^k t_2

    sum: (A - rho_v)(Y - r), since rho_v r = m r - v 2^k msb(m) r. Exact in Z_2^K.

y has one element for each row of x.
"""

from __future__ import annotations

from veilrun.mpc.machines.dealer import Dealer
from veilrun.mpc.machines.party import Party
from veilrun.mpc.machines.tracer import Tracer
from veilrun.mpc.machines.twin import Twin
from veilrun.mpc.plan import Share
from veilrun.mpc.shares import Extended, Masked, Shared


def trace(machine: Tracer, x: Extended, y: Masked) -> Shared:
    machine.want(Share(x.shape, x.bits))
    machine.want(Share(x.shape, x.bits - x.narrow_bits))
    return machine.shared(x.shape, x.bits)


def deal(machine: Dealer, x: Extended, y: Masked) -> Shared:
    shared = machine.share(x.mask * y.mask, x.bits)
    machine.share(x.top * y.mask, x.bits - x.narrow_bits)
    return shared


def run(machine: Party, x: Extended, y: Masked) -> Shared:
    dealt = machine.take(), machine.take()
    value, factor = (x.array, x.mask, x.top), (y.array, y.mask)
    rings = (x.narrow_bits, x.bits)
    product = machine.arithmetic.times(value, factor, dealt, rings, machine.is_first)
    return Shared(product, x.bits)


def plain(machine: Twin, x: Extended, y: Masked) -> Shared:
    return machine.in_ring(x.array * y.array, x.bits, "product")
