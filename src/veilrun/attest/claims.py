"""What verified evidence says, in one vocabulary for all vendors. No policy in here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum


class Kind(StrEnum):
    """Kinds of evidence."""

    INTEL_SGX = "intel-sgx"
    INTEL_TDX = "intel-tdx"
    AMD_SEV_SNP = "amd-sev-snp"
    NVIDIA_GPU = "nvidia-gpu"
    NVIDIA_SWITCH = "nvidia-switch"
    AWS_NITRO = "aws-nitro"
    TPM = "tpm"


@dataclass(frozen=True, slots=True)
class Tcb:
    """How recent the platform's firmware is.

    status: in the vendor's words (`UpToDate`, `OutOfDate`, ...). advisories: open ones.
    dated: since when a newer level exists; None if unknown.
    """

    status: str
    advisories: tuple[str, ...] = ()
    dated: datetime | None = None


@dataclass(frozen=True)
class Claims:
    """What one piece of evidence proves.

    nonce: the challenge that the evidence itself carries, where its format has a field for it.
    report_data: bytes that the attested machine chose (64 for TDX, SNP and SGX).
    measurements: name -> lower-case hex (`mrtd`, `rtmr0`, `measurement`, `pcr0`, ...).
    versions: name -> version, as text with dots or digits (`driver`, `vbios`, `snp`, ...).
    identity: name -> which machine (`chip_id`, `module_id`, ...).
    made_at: when the evidence was made, if it says so.
    debug: whether it can be looked into from outside; None where the kind has no such thing.
    nested: evidence that this one rests on (an Azure TPM's, on the VM's own report).
    """

    kind: Kind
    measurements: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    identity: Mapping[str, str] = field(default_factory=dict)
    nonce: bytes | None = None
    report_data: bytes | None = None
    made_at: datetime | None = None
    debug: bool | None = None
    tcb: Tcb | None = None
    nested: tuple[Claims, ...] = ()
