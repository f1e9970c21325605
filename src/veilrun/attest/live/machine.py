"""All evidence of this machine in one bundle, bound to a connection and to weights.

Steps of `evidence_of`:
1. GPUs answer the nonce.
2. The report data: a hash over nonce, TLS key, weights root and the GPUs' evidence (`binding`).
3. CPU or TPM answer the report data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from veilrun.attest.binding import Binding, gpu_digest
from veilrun.attest.bundle import encode_bundle
from veilrun.attest.claims import Kind


class AttesterError(Exception):
    """The device or its driver does not do what it should; no fault of a peer or a caller."""


@dataclass(frozen=True, slots=True)
class Made:
    """What an attester made: a file of evidence, and files of endorsements."""

    kind: Kind
    data: bytes
    endorsements: tuple[bytes, ...] = ()


class Attester(Protocol):
    """A CPU or a TPM. Blocks; one call at a time."""

    def evidence(self, report_data: bytes) -> Made:
        """Evidence with these 64 bytes, or as many of them as there is room for.

        Raises:
            AttesterError: it gives none.
        """


class GpuAttester(Protocol):
    """The GPUs. Blocks; one call at a time."""

    def evidence(self, nonce: bytes) -> Made:
        """Evidence of all of them with this nonce (32 bytes). Raises AttesterError."""


@dataclass(frozen=True, slots=True)
class Attested:
    """What the evidence of this node is about, and who makes it."""

    attester: Attester
    gpu_attester: GpuAttester | None
    tls_key_sha256: bytes
    weights_root: bytes


def evidence_of(node: Attested, nonce: bytes) -> bytes:
    """The bundle for a nonce, steps as above. Raises AttesterError."""
    # 1. GPUs
    gpus = [] if node.gpu_attester is None else [node.gpu_attester.evidence(nonce)]
    # 2. report data
    digest = gpu_digest(one.data for one in gpus)
    binding = Binding(nonce, node.tls_key_sha256, node.weights_root, digest)
    # 3. CPU or TPM
    made = [node.attester.evidence(binding.report_data()), *gpus]
    endorsements = [file for one in made for file in one.endorsements]
    return encode_bundle([(one.kind, one.data) for one in made], endorsements, binding)
