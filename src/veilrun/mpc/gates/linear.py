"""Linear maps of masked values: z = x W + b, several terms at once. No round.

    offline   c = b - m W, shared in the ring of x
    online    z_i = X W_i + c_i          (X = x + m public, W = W_1 + W_2)

    sum: X W + b - m W = x W + b. Exact in the ring.

Terms share one correction, so adding a residual x' W' to a linear layer costs nothing more.
Source: the facts above with the dealer as the owner of W; the masked-input form of Beaver's
triples (Beaver 1991), where the dealer knows W and one opening is left.
"""

from __future__ import annotations

import functools

import numpy as np

from veilrun.mpc.machines.dealer import Dealer
from veilrun.mpc.machines.party import Party
from veilrun.mpc.machines.tracer import Tracer
from veilrun.mpc.machines.twin import Twin
from veilrun.mpc.plan import Share
from veilrun.mpc.shares import Array, Masked, Shared
from veilrun.mpc.weights import Matrix

Term = tuple[Masked, str]
"""(x [n, n_in], the name of the matrix)."""


def trace(machine: Tracer, *terms: Term) -> Shared:
    x, name = terms[0]
    shape = (*x.shape[:-1], machine.n_outputs(name))
    machine.want(Share(shape, x.bits))
    return machine.shared(shape, x.bits)


def deal(machine: Dealer, *terms: Term) -> Shared:
    products = [_affine(machine.matrices[name], x.mask, -1) for x, name in terms]
    return machine.share(_sum(products), terms[0][0].bits)


def run(machine: Party, *terms: Term) -> Shared:
    bits = terms[0][0].bits
    total = machine.take()
    for x, name in terms:
        total = machine.arithmetic.add_mapped(total, x.array, machine.matrices[name], bits)
    return Shared(total, bits)


def plain(machine: Twin, *terms: Term) -> Shared:
    products = [_affine(machine.matrices[name], x.array, 1) for x, name in terms]
    return machine.in_ring(_sum(products), terms[0][0].bits, terms[0][1])


def _affine(matrix: Matrix, x: Array, sign: int) -> Array:
    """sign x W + b."""
    product = matrix.times(x) if sign > 0 else -matrix.times(x)
    return product if matrix.bias is None else product + matrix.bias


def _sum(products: list[Array]) -> Array:
    return functools.reduce(np.add, products)
