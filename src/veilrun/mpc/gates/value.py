"""An extended value as a shared one: z = A - rho. No round, nothing dealt.

online    P1: A - rho_1    P2: -rho_2
"""

from __future__ import annotations

from veilrun.mpc.machines.dealer import Dealer
from veilrun.mpc.machines.party import Party
from veilrun.mpc.machines.tracer import Tracer
from veilrun.mpc.machines.twin import Twin
from veilrun.mpc.shares import Extended, Shared


def trace(machine: Tracer, x: Extended) -> Shared:
    return machine.shared(x.shape, x.bits)


def deal(machine: Dealer, x: Extended) -> Shared:
    return Shared(x.array, x.bits)


def run(machine: Party, x: Extended) -> Shared:
    a = machine.arithmetic
    if machine.is_first:
        return Shared(a.subtract(x.array, x.mask, x.bits), x.bits)
    return Shared(a.negate(x.mask, x.bits), x.bits)


def plain(machine: Twin, x: Extended) -> Shared:
    return Shared(x.array, x.bits)
