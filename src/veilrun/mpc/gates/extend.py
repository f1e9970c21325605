"""From a narrow ring into a wide one, with no wrap left over: Z_2^k -> Z_2^K, |z| < 2^(k-2).

Before the opening, `lift` adds 2^(k-2), so that what is opened, o = z + 2^(k-2) + m, is the sum
of a number below 2^(k-1) and the mask. It has wrapped exactly when the mask's top bit is 1 and
o's is 0. With the public v = (top bit of o is 0):

    z = A - rho_v,   A = o - 2^(k-2),   rho_v = m - v 2^k msb(m)     over the integers

As integers m = m_1 + m_2 - 2^k carry, so the parties hold m already, but for bits above k:

    offline   carry, carry + msb(m), both shared in Z_2^(K-k)
    online    rho_i = m_i - 2^k (the one that v picks)_i  mod 2^K

No round. What can be done with z before any further opening: its `value` as a shared one, `times`
a masked one, and the sum of its `squares`; see those files. The dealer does not know v, so for a
product of two data tensors z must be masked again.

Source: section 5.3 of the protocol's facts (G5), with the dealt part cut from 2 K to 2 (K - k)
bits; two-variant wrap as in Sigma (Gupta et al. 2023) without comparison keys.
"""

from __future__ import annotations

from veilrun.mpc.machines.dealer import Dealer
from veilrun.mpc.machines.party import Party
from veilrun.mpc.machines.tracer import Tracer
from veilrun.mpc.machines.twin import Twin
from veilrun.mpc.plan import Share
from veilrun.mpc.shares import Extended, Masked, widen


def trace(machine: Tracer, x: Masked, bits: int) -> Extended:
    machine.want(Share(x.shape, bits - x.bits))
    machine.want(Share(x.shape, bits - x.bits))
    return machine.extended(x.shape, bits, x.bits)


def deal(machine: Dealer, x: Masked, bits: int) -> Extended:
    mask, top = widen(x.mask, bits), x.mask >> x.mask.dtype.type(x.bits - 1)
    carry = widen(machine.carry(x), bits)
    machine.share(carry, bits - x.bits)
    machine.share(carry + widen(top, bits), bits - x.bits)
    return Extended(x.array, mask, widen(top, bits), bits, x.bits)


def run(machine: Party, x: Masked, bits: int) -> Extended:
    upper = machine.take(), machine.take()
    array, rho, top = machine.arithmetic.extend(x.array, x.mask, upper, x.bits, bits)
    return Extended(array, rho, top, bits, x.bits)


def plain(machine: Twin, x: Masked, bits: int) -> Extended:
    return Extended(x.array, x.array, x.array, bits, x.bits)
