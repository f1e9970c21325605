"""Rules about all evidence of a machine together: what must be there, and what it is about.

A binding holds only if the machine's report data is the hash of what it states (`binding`); that
is checked for every CPU and TPM in the evidence before any stated value is compared. Evidence that
was not made by a veilrun node has none, and fails these rules by name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from veilrun.attest.binding import gpu_digest
from veilrun.attest.checks import Check
from veilrun.attest.claims import Claims, Kind
from veilrun.attest.policy import MACHINE, Machine, failed, passed
from veilrun.attest.reasons import Reason


@dataclass(frozen=True)
class Required:
    """So many different devices of each kind. One device that is there twice counts once."""

    counts: Mapping[Kind, int]

    def checks(self, machine: Machine) -> Iterator[Check]:
        for kind, n_required in self.counts.items():
            devices = {_device(claims) for _, claims in machine.of_kind(kind)}
            title, detail = f"required {kind}", f"{len(devices)} of {n_required}"
            if len(devices) >= n_required:
                yield passed(MACHINE, title, detail)
            else:
                yield failed(MACHINE, title, Reason.MISSING, f"{detail} different devices")


@dataclass(frozen=True)
class BoundToTls:
    """The evidence is about the TLS key of this connection, which the caller must name."""

    def checks(self, machine: Machine) -> Iterator[Check]:
        demanded = machine.demands.tls_key_sha256
        stated = machine.binding.tls_key_sha256 if machine.binding else None
        yield from _bound(machine, "binding tls", Reason.BINDING_TLS, demanded, stated)


@dataclass(frozen=True)
class BoundToWeights:
    """The evidence is about the weights that are served; the caller must say which."""

    def checks(self, machine: Machine) -> Iterator[Check]:
        demanded = machine.demands.weights_root
        stated = machine.binding.weights_root if machine.binding else None
        yield from _bound(machine, "binding weights", Reason.BINDING_WEIGHTS, demanded, stated)


@dataclass(frozen=True)
class BoundTogether:
    """Where there is evidence of GPUs and of a CPU or TPM, the latter is about the former.

    A nonce alone does not do: it would let GPUs of another machine be passed off as this one's.
    """

    def checks(self, machine: Machine) -> Iterator[Check]:
        gpus = machine.gpus()
        if gpus and machine.hosts():
            demanded = gpu_digest(one.source for one in gpus)
            stated = machine.binding.gpu_evidence_sha256 if machine.binding else None
            yield from _bound(machine, "binding gpu", Reason.BINDING_GPU, demanded, stated)


def _bound(
    machine: Machine, name: str, reason: Reason, demanded: bytes | None, stated: bytes | None
) -> Iterator[Check]:
    hosts = machine.hosts()
    if not hosts:
        yield failed(MACHINE, name, reason, "no evidence of a CPU or TPM that could be bound")
    for piece in hosts:
        if demanded is None:
            detail = "the policy asks for it, and nothing to compare with was given"
        elif machine.binding is None or stated is None:
            detail = "the evidence states no binding: it was not made by a veilrun node"
        elif not machine.binding.is_in(piece.claims):
            detail = "the report data is not the hash of what the evidence states"
        elif stated != demanded:
            detail = f"the evidence is about {stated.hex() or 'none'}, not {demanded.hex()}"
        else:
            yield passed(piece.label, name)
            continue
        yield failed(piece.label, name, reason, detail)


def _device(claims: Claims) -> str | frozenset[tuple[str, str]]:
    """Which device it is; all that do not say are taken for one."""
    return claims.identity.get("chip_id") or frozenset(claims.identity.items())
