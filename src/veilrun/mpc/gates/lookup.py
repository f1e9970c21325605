"""Public tables at secret indexes: T(i), or T(i, j) with several inputs. No round.

An index comes masked, I = i + D mod 2^n, by the opening before. Two ways, whichever is smaller:

    one-time table   offline  U[t] = T[t - D], shared: 2^n entries to party 2
                     online   z_k = U_k[I]
    point function   offline  keys of u, u[t] = 1 where t = D: corrections to both parties
                     online   z_k = sum_t u_k[t] T[I - t]

Several inputs: indexes and masks are concatenated, and each is shifted mod its own 2^n.
With keys, the table's guard is read by the same keys and its sum over all elements is flagged.

Source: one-time truth tables (Ishai et al. 2013); point functions for look-up (Boyle et al. 2019);
several inputs as in 2508.01636.
"""

from __future__ import annotations

import numpy as np

from veilrun.mpc import dpf
from veilrun.mpc.arithmetic import Key
from veilrun.mpc.machines.dealer import Dealer
from veilrun.mpc.machines.party import Party
from veilrun.mpc.machines.tracer import Tracer
from veilrun.mpc.machines.twin import Twin
from veilrun.mpc.plan import Keys, Share
from veilrun.mpc.shares import Array, Masked, Shared, dtype_of, signed, wrap
from veilrun.mpc.tables import StepTable


def trace(machine: Tracer, name: str, table: StepTable, *inputs: Masked) -> Shared:
    shape = inputs[0].shape
    n = int(np.prod(shape, dtype=np.int64))
    if table.by_keys:
        machine.want(Keys(n, table.domain))
        if table.guard is not None:
            machine.flag(name, machine.shared((), table.flag_bits))
    else:
        machine.want(Share((n, table.values.size), _stored_bits(table)))
    return machine.shared(shape, table.bits)


def deal(machine: Dealer, name: str, table: StepTable, *inputs: Masked) -> Shared:
    points = _concatenate([x.mask for x in inputs], table)
    if table.by_keys:
        machine.keys(points, table.domain)
    else:
        machine.share(_one_time(table, points), _stored_bits(table))
    return machine.unknown(inputs[0].shape, table.bits)


def run(machine: Party, name: str, table: StepTable, *inputs: Masked) -> Shared:
    a, shape, bits = machine.arithmetic, inputs[0].shape, table.bits
    if inputs[1:]:
        indexes = _concatenate([x.array for x in inputs], table)
    else:
        indexes = a.upper(inputs[0].array, inputs[0].bits, 0)
    if not table.by_keys:
        return Shared(a.gather(machine.take(), indexes, bits).reshape(shape), bits)
    if inputs[1:]:
        values = wrap(_several(machine.key(), indexes, table), bits)
        return Shared(values.reshape(shape), bits)
    key_bits = table.domain.out_bits
    found = a.lookup(machine.key(), indexes, table.rows)
    if table.guard is not None:
        n_flagged = a.window(a.sum(found[1], 0, key_bits), key_bits, table.flag_bits)
        machine.flag(name, Shared(n_flagged.reshape(()), table.flag_bits))
    return Shared(a.window(found[0], key_bits, bits).reshape(shape), bits)


def plain(machine: Twin, name: str, table: StepTable, *inputs: Masked) -> Shared:
    place = tuple(
        x.array & (length - 1) for x, length in zip(inputs, table.values.shape, strict=True)
    )
    if table.guard is not None and table.by_keys:
        n_flagged = table.guard[place].sum(dtype=np.int64)
        machine.flag(name, Shared(np.asarray(n_flagged), table.flag_bits))
    values = table.values[place]
    return Shared(signed(values, table.bits), table.bits)


def _stored_bits(table: StepTable) -> int:
    return 8 * dtype_of(table.bits).itemsize


def _concatenate(parts: list[Array], table: StepTable) -> Array:
    """The inputs as one index, the first uppermost: uint32[n]."""
    total = parts[0].reshape(-1).astype(np.uint32)
    for part, bits in zip(parts[1:], table.index_bits[1:], strict=True):
        total = (total << np.uint32(bits)) | part.reshape(-1).astype(np.uint32)
    return total


def _split(indexes: Array, table: StepTable) -> list[Array]:
    parts = []
    for bits in reversed(table.index_bits):
        parts.append(indexes & np.uint32(2**bits - 1))
        indexes = indexes >> np.uint32(bits)
    return parts[::-1]


def _shifted(table: StepTable, offsets: Array, sign: int) -> Array:
    """Each element's own table: out[e, t] = T[sign t + offset_e], flat over the inputs."""
    places = []
    for axis, offset in enumerate(_split(offsets, table)):
        length = table.values.shape[axis]
        steps = sign * np.arange(length, dtype=np.int64)
        place = (offset.astype(np.int64)[:, None] + steps) % length
        others = [1] * len(table.values.shape)
        others[axis] = length
        places.append(place.reshape(len(offsets), *others))
    shifted: Array = table.values[tuple(places)].reshape(len(offsets), -1)
    return shifted


def _one_time(table: StepTable, masks: Array) -> Array:
    """U[e, t] = T[t - D_e]."""
    negated = _concatenate(
        [
            (-part) & np.uint32(2**b - 1)
            for part, b in zip(_split(masks, table), table.index_bits, strict=True)
        ],
        table,
    )
    return _shifted(table, negated, +1)


def _several(key: Key, indexes: Array, table: StepTable) -> Array:
    party, keys, tweak = key
    expansion = dpf.expand(party, *keys, table.domain, tweak)
    products = expansion * _shifted(table, indexes, -1)
    total: Array = products.sum(axis=1, dtype=expansion.dtype)
    return total
