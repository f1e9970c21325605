"""The sum of squares of extended values along the last axis. No round.

With z_j = A_j - rho_j (see `extend`), rho_j^2 = m_j^2 + v_j 2^k msb(m_j) (2^k - 2 m_j):

    offline   sum_j m_j^2 in Z_2^K, one per row;  q_j = msb(m_j) (2^k - 2 m_j) in Z_2^(K-k), shared
    online    P1: sum_j A_j^2 - 2 A_j rho_1j + (sum of squares)_1 + 2^k sum_j v_j q_1j
              P2: sum_j       - 2 A_j rho_2j + (sum of squares)_2 + 2^k sum_j v_j q_2j

Exact in Z_2^K. x [..., d] gives [..., 1].
"""

from __future__ import annotations

from veilrun.mpc.machines.dealer import Dealer
from veilrun.mpc.machines.party import Party
from veilrun.mpc.machines.tracer import Tracer
from veilrun.mpc.machines.twin import Twin
from veilrun.mpc.plan import Share
from veilrun.mpc.shares import Extended, Shared


def trace(machine: Tracer, x: Extended) -> Shared:
    row = (*x.shape[:-1], 1)
    machine.want(Share(row, x.bits))
    machine.want(Share(x.shape, x.bits - x.narrow_bits))
    return machine.shared(row, x.bits)


def deal(machine: Dealer, x: Extended) -> Shared:
    word = x.mask.dtype.type
    shared = machine.share((x.mask * x.mask).sum(axis=-1, keepdims=True, dtype=word), x.bits)
    machine.share(x.top * (word(2**x.narrow_bits) - word(2) * x.mask), x.bits - x.narrow_bits)
    return shared


def run(machine: Party, x: Extended) -> Shared:
    dealt = machine.take(), machine.take()
    value, rings = (x.array, x.mask, x.top), (x.narrow_bits, x.bits)
    return Shared(machine.arithmetic.squares(value, dealt, rings, machine.is_first), x.bits)


def plain(machine: Twin, x: Extended) -> Shared:
    squares = (x.array * x.array).sum(axis=-1, keepdims=True)
    return machine.in_ring(squares, x.bits, "sum of squares", is_signed=False)
