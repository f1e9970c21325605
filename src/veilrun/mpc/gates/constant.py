"""A private constant of the model as a shared value. No round.

offline   the constant, shared; rows beyond `n_rows` are left out
"""

from __future__ import annotations

from veilrun.mpc.machines.dealer import Dealer
from veilrun.mpc.machines.party import Party
from veilrun.mpc.machines.tracer import Tracer
from veilrun.mpc.machines.twin import Twin
from veilrun.mpc.plan import Share
from veilrun.mpc.shares import Shared


def trace(machine: Tracer, name: str, shape: tuple[int, ...], bits: int) -> Shared:
    machine.want(Share(shape, bits))
    return machine.shared(shape, bits)


def deal(machine: Dealer, name: str, shape: tuple[int, ...], bits: int) -> Shared:
    return machine.share(machine.constants[name][: shape[0]], bits)


def run(machine: Party, name: str, shape: tuple[int, ...], bits: int) -> Shared:
    return Shared(machine.take(), bits)


def plain(machine: Twin, name: str, shape: tuple[int, ...], bits: int) -> Shared:
    return machine.in_ring(machine.constants[name][: shape[0]], bits, name)
