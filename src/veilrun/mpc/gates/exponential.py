"""e^x of a masked value, exactly: the step by table, the rest by e^(a + b) = e^a e^b. No round.

The value comes masked, X = x + m mod 2^w, with I, X_low, D and m_low as in `interpolate`, so
x = (I - D) 2^s + X_low - m_low.

    offline   keys of u, u[D] = e^(-m_low), else 0: corrections to both
    online    z_k = e^(X_low) sum_t u_k[t] T[I - t]

    sum: T[i] e^(X_low - m_low), i = I - D.

All three are integers with bits after the point, which `shrink` takes off again.
Source: the facts' e^(S - m) = e^S e^-m, with the wrap resolved by the point function, so that
the range of the exponent is that of the table and not of the ring.
"""

from __future__ import annotations

import numpy as np

from veilrun.mpc.arithmetic import lower, upper
from veilrun.mpc.gates import shrink
from veilrun.mpc.gates.interpolate import split
from veilrun.mpc.machines.dealer import Dealer
from veilrun.mpc.machines.party import Party
from veilrun.mpc.machines.tracer import Tracer
from veilrun.mpc.machines.twin import Twin
from veilrun.mpc.plan import Keys
from veilrun.mpc.shares import Masked, Shared
from veilrun.mpc.tables import ExpTable


def trace(machine: Tracer, name: str, table: ExpTable, x: Masked) -> Shared:
    machine.want(Keys(int(np.prod(x.shape, dtype=np.int64)), table.domain))
    return machine.shared(x.shape, table.bits)


def deal(machine: Dealer, name: str, table: ExpTable, x: Masked) -> Shared:
    point, low = upper(x.mask, table.low_bits), lower(x.mask, table.low_bits)
    machine.keys(point, table.domain, table.falling[low][None])
    return machine.unknown(x.shape, table.bits)


def run(machine: Party, name: str, table: ExpTable, x: Masked) -> Shared:
    machine.watch_mask(x.mask, table.low_bits)
    a, bits = machine.arithmetic, table.bits + table.extra_bits
    index = a.upper(x.array, x.bits, table.low_bits)
    low = a.lower(x.array, table.low_bits)
    found = a.lookup(machine.key(), index, table.rows)
    values = a.scale(found[0], table.rising, low, bits)
    return shrink.run(machine, Shared(values.reshape(x.shape), bits), table.extra_bits)


def plain(machine: Twin, name: str, table: ExpTable, x: Masked) -> Shared:
    mask_low = machine.low_bits(x.shape, table.low_bits)
    i, rest = split(x.array, mask_low, table.low_bits, table.index_bits)
    low = rest + mask_low & ((1 << table.low_bits) - 1)
    # Below 2^63 by the table's making, so the signed product is the ring's.
    value = (table.values[i] * table.falling[mask_low] * table.rising[low]).astype(np.int64)
    bits = table.bits + table.extra_bits
    return shrink.plain(machine, Shared(value, bits), table.extra_bits)
