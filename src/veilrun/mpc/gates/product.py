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

from veilrun.mpc import ring
from veilrun.mpc.machines.dealer import Dealer
from veilrun.mpc.machines.party import Party
from veilrun.mpc.machines.tracer import Tracer
from veilrun.mpc.machines.twin import Twin
from veilrun.mpc.plan import Share
from veilrun.mpc.shares import Array, Masked, Shared, wrap


def trace(machine: Tracer, x: Masked, y: Masked) -> Shared:
    shape = (*x.shape[:-1], y.shape[-1])
    machine.want(Share(shape, x.bits))
    return machine.shared(shape, x.bits)


def deal(machine: Dealer, x: Masked, y: Masked) -> Shared:
    return machine.share(_matmul(x.mask, y.mask, 1), x.bits)


def run(machine: Party, x: Masked, y: Masked) -> Shared:
    right = (y.array - y.mask) if machine.is_first else -y.mask
    product = _matmul(
        np.concatenate([x.array, -x.mask], axis=-1),
        np.concatenate([right, y.array], axis=-2),
        machine.n_threads,
    )
    return Shared(wrap(product + machine.take(), x.bits), x.bits)


def plain(machine: Twin, x: Masked, y: Masked) -> Shared:
    value = np.matmul(x.array.astype(np.float64), y.array.astype(np.float64)).astype(np.int64)
    return Shared(value, x.bits)  # what is made of it must fit; it need not


def _matmul(x: Array, y: Array, n_threads: int) -> Array:
    """[..., n, k] x [..., k, m] in uint16 or uint32."""
    batch = x.shape[:-2]
    x3 = np.ascontiguousarray(x).reshape(-1, *x.shape[-2:])
    y3 = np.ascontiguousarray(y).reshape(-1, *y.shape[-2:])
    product = ring.matmul_batch(x3, y3, n_threads=n_threads)
    return product.reshape(*batch, x.shape[-2], y.shape[-1])
