"""A smooth function of one masked value, by a straight line for each step of its grid. No round.

The value comes masked, X = x + m mod 2^w. Its upper n bits are an index I, its low bits X_low,
and likewise D and m_low of the mask; then x = (I - D) 2^s + (X_low - m_low), whatever carries
there were. Entry i has a value a_i and a slope b_i, good for a step to either side:

    offline   keys of u and of u', u[D] = 1 and u'[D] = m_low, else 0: corrections to both
    online    z_k = sum_t u_k[t] (a[I - t] + X_low b[I - t]) - sum_t u'_k[t] b[I - t]

    sum: a_i + b_i (X_low - m_low), i = I - D.

then `shrink` by the table's extra bits. Source: splines by function secret sharing (Boyle et al.
2021), here with point functions whose second payload replaces the product with the mask.
"""

from __future__ import annotations

import numpy as np

from veilrun.mpc.arithmetic import lower, upper
from veilrun.mpc.gates import shrink
from veilrun.mpc.machines.dealer import Dealer
from veilrun.mpc.machines.party import Party
from veilrun.mpc.machines.tracer import Tracer
from veilrun.mpc.machines.twin import Twin
from veilrun.mpc.plan import Keys
from veilrun.mpc.shares import Array, Masked, Shared, signed
from veilrun.mpc.tables import LinearTable


def trace(machine: Tracer, name: str, table: LinearTable, x: Masked) -> Shared:
    machine.want(Keys(int(np.prod(x.shape, dtype=np.int64)), table.domain))
    if table.guard is not None:
        machine.flag(name, machine.shared((), table.flag_bits))
    return machine.shared(x.shape, table.bits)


def deal(machine: Dealer, name: str, table: LinearTable, x: Masked) -> Shared:
    point, low = upper(x.mask, table.low_bits), lower(x.mask, table.low_bits)
    payloads = np.stack([np.ones_like(low), low]).astype(table.values.dtype)
    machine.keys(point, table.domain, payloads)
    return machine.unknown(x.shape, table.bits)


def run(machine: Party, name: str, table: LinearTable, x: Masked) -> Shared:
    machine.watch_mask(x.mask, table.low_bits)
    a, key_bits = machine.arithmetic, table.domain.out_bits
    values, n_flagged = a.interpolate(machine.key(), x.array, x.bits, table.rows, table.low_bits)
    if table.guard is not None:
        flagged = a.window(n_flagged, key_bits, table.flag_bits)
        machine.flag(name, Shared(flagged, table.flag_bits))
    bits = table.bits + table.extra_bits
    z = Shared(a.window(values, key_bits, bits).reshape(x.shape), bits)
    return shrink.run(machine, z, table.extra_bits)


def plain(machine: Twin, name: str, table: LinearTable, x: Masked) -> Shared:
    mask_low = machine.low_bits(x.shape, table.low_bits)
    i, rest = split(x.array, mask_low, table.low_bits, table.index_bits)
    if table.guard is not None:
        n_flagged = table.guard[i].sum(dtype=np.int64)
        machine.flag(name, Shared(np.asarray(n_flagged), table.flag_bits))
    bits = table.bits + table.extra_bits
    value = signed(table.values, bits)[i] + signed(table.slopes, bits)[i] * rest
    return shrink.plain(machine, machine.in_ring(value, bits, name), table.extra_bits)


def split(x: Array, mask_low: Array, low_bits: int, index_bits: int) -> tuple[Array, Array]:
    """The twin's: the entry that is taken, and x less that entry's place, in units."""
    low = x & ((1 << low_bits) - 1)
    carry = ((low + mask_low) >> low_bits).astype(np.int64)
    entry = ((x >> low_bits) + carry) & ((1 << index_bits) - 1)
    return entry, low - (carry << low_bits)
