"""Who makes evidence of a node's machine: the options of `veilrun node`, and what they give."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from veilrun.errors import RefusedError, UsageError

if TYPE_CHECKING:
    from veilrun.attest.live.machine import Attested, Attester
    from veilrun.transport.tls import Identity
    from veilrun.wire.manifest import Manifest


class AttesterName(StrEnum):
    """What vouches for the machine."""

    tpm = "tpm"
    tdx = "tdx"
    snp = "snp"


class GpuAttesterName(StrEnum):
    """What vouches for its GPUs."""

    nvidia = "nvidia"


AttesterOption = Annotated[
    AttesterName | None,
    typer.Option(
        "--attester",
        help="Offer evidence of this machine, for a client's nonce: about the TLS key and the "
        "weights that are served.",
    ),
]
GpuAttesterOption = Annotated[
    GpuAttesterName | None,
    typer.Option("--gpu-attester", help="Offer evidence of its GPUs too."),
]
TpmAddressOption = Annotated[
    str | None,
    typer.Option(
        "--tpm",
        help="The TPM, as tpm2-tools call it; default device:/dev/tpmrm0.",
        metavar="TCTI",
    ),
]


@dataclass(frozen=True, slots=True)
class Choice:
    """What the options say."""

    attester: AttesterName | None
    gpu_attester: GpuAttesterName | None
    tpm_address: str | None


def find_attester(
    choice: Choice, identity: Identity | None, manifest: Manifest
) -> tuple[Attested | None, str | None]:
    """Who makes evidence, and what it is about; and the TPM's key, as policies name it.

    Evidence is made once, so that a device that does not work stops the node now.

    Raises:
        UsageError: options that do not go together, or a device that gives no evidence.
        RefusedError: plain HTTP, which has no key that evidence could be about.
    """
    if choice.attester is None:
        if choice.gpu_attester or choice.tpm_address:
            raise UsageError("--gpu-attester and --tpm need --attester: GPUs alone bind nothing")
        return None, None
    if choice.tpm_address and choice.attester is not AttesterName.tpm:
        raise UsageError("--tpm is an option of --attester tpm")
    if identity is None:
        raise RefusedError("evidence is about the node's TLS key, and plain HTTP has none")
    from cryptography import x509

    from veilrun.attest.certificates import key_sha256
    from veilrun.attest.live.machine import Attested, AttesterError, evidence_of

    certificate = x509.load_pem_x509_certificate(identity.certificate_pem)
    try:
        attester, fingerprint = _attester(choice)
        gpus = None
        if choice.gpu_attester is GpuAttesterName.nvidia:
            from veilrun.attest.live.nvidia import NvidiaAttester

            gpus = NvidiaAttester()
        attested = Attested(
            attester,
            gpus,
            key_sha256(certificate.public_key()),
            bytes.fromhex(manifest.weights_root),
        )
        evidence_of(attested, secrets.token_bytes(32))
    except AttesterError as error:
        raise UsageError(f"--attester {choice.attester}: {error}") from error
    return attested, fingerprint


def _attester(choice: Choice) -> tuple[Attester, str | None]:
    if choice.attester is AttesterName.tpm:
        from veilrun.attest.live.tpm import RESOURCE_MANAGER, TpmAttester

        tpm = TpmAttester(choice.tpm_address or RESOURCE_MANAGER)
        return tpm, tpm.key_fingerprint()
    from veilrun.attest.claims import Kind
    from veilrun.attest.live.tsm import TsmAttester

    tdx = choice.attester is AttesterName.tdx
    return TsmAttester(Kind.INTEL_TDX if tdx else Kind.AMD_SEV_SNP), None
