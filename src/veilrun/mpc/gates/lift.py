"""Adding 2^(k-2), which makes a signed number of k-1 bits a non-negative one. Before `extend`.

online    z_1' = z_1 + 2^(k-2)
"""

from __future__ import annotations

from veilrun.mpc.machines.dealer import Dealer
from veilrun.mpc.machines.party import Party
from veilrun.mpc.machines.tracer import Tracer
from veilrun.mpc.machines.twin import Twin
from veilrun.mpc.shares import Shared


def trace(machine: Tracer, z: Shared) -> Shared:
    return z


def deal(machine: Dealer, z: Shared) -> Shared:
    return z


def run(machine: Party, z: Shared) -> Shared:
    if not machine.is_first:
        return z
    return Shared(machine.arithmetic.raised(z.array, z.bits - 2, z.bits), z.bits)


def plain(machine: Twin, z: Shared) -> Shared:
    return machine.check(z, z.bits - 1, "before an extension")
