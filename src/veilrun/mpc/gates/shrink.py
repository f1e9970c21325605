"""Dividing by a power of two, and changing ring, without a word to the other party. No round.

`shrink`: Z_2^k -> Z_2^(k-s), z / 2^s.

    online    z_i' = z_i >> s, party 1 adds 1

The two carries that the shift drops are that of the ring, which vanishes mod 2^(k-s), and that
of the low bits: the sum is floor(z / 2^s) + 1 - c with c = 1 exactly when party 1's low bits
exceed those of z. Party 1's share is uniform, so this is *unbiased stochastic rounding*: one of
the two integers around z / 2^s, up to 2^-s with the right probabilities. Nothing can wrap, and
nothing is dealt. Shrinking before opening also makes the opening shorter.

Source: local truncation as in SecureML (Mohassel and Zhang 2017), whose wrap error comes from
keeping the ring; here the ring shrinks with the value.
"""

from __future__ import annotations

import numpy as np

from veilrun.mpc.machines.dealer import Dealer
from veilrun.mpc.machines.party import Party
from veilrun.mpc.machines.tracer import Tracer
from veilrun.mpc.machines.twin import Twin
from veilrun.mpc.shares import Shared


def trace(machine: Tracer, z: Shared, by: int) -> Shared:
    return machine.shared(z.shape, z.bits - by)


def deal(machine: Dealer, z: Shared, by: int) -> Shared:
    return Shared(z.array, z.bits - by)


def run(machine: Party, z: Shared, by: int) -> Shared:
    if by == 0:
        return z
    if machine.is_first:
        machine.watch_rounding(z.array, by)
    bits = z.bits - by
    return Shared(machine.arithmetic.shrink(z.array, by, bits, machine.is_first), bits)


def plain(machine: Twin, z: Shared, by: int) -> Shared:
    if by == 0:
        return z
    low = z.array & ((1 << by) - 1)
    carry = machine.low_bits(z.shape, by) > low
    return Shared((z.array >> by) + 1 - carry.astype(np.int64), z.bits - by)
