"""The roots that evidence must lead to, by SHA-256 of their DER form, and where each is published.

Certificates themselves come with the evidence or from files; only one with a digest in this list
ends a chain.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Pin:
    """One vendor's root. sha256: of the DER form. source: where the vendor publishes it."""

    name: str
    sha256: str
    source: str


INTEL: Final = (
    Pin(
        "Intel SGX Root CA",
        "44a0196b2b99f889b8e149e95b807a350e7424964399e885a7cbb8ccfab674d3",
        "certificates.trustedservices.intel.com, Intel_SGX_Provisioning_Certification_RootCA.cer",
    ),
)

AMD: Final = (
    Pin(
        "AMD ARK-Milan",
        "69d063b45344d26a2e94e1f4210de49ef555308287d4c174445c95639a540bcd",
        "kdsintf.amd.com, vcek/v1/Milan/cert_chain",
    ),
    Pin(
        "AMD ARK-Genoa",
        "4c6598d19c18719c5dfd4a7d335f674e5bfe1d8f800cea2cf270c10d103db2f1",
        "kdsintf.amd.com, vcek/v1/Genoa/cert_chain",
    ),
    Pin(
        "AMD ARK-Turin",
        "1f084161a44bb6d93778a904877d4819cafa5d05ef4193b2ded9dd9c73dd3f6a",
        "kdsintf.amd.com, vcek/v1/Turin/cert_chain",
    ),
)

NVIDIA_DEVICE: Final = (
    Pin(
        "NVIDIA Device Identity CA",
        "102bf659d5419614c9d8e6aecebc80454eb26b1df6a769ac720b9a690b167b48",
        "github.com/NVIDIA/nvtrust, root of every device's chain",
    ),
)

NVIDIA_MANIFESTS: Final = (
    Pin(
        "NVIDIA CoRIM signing Root CA",
        "12977b5115acb0381179279fffeb5a8c4d264971ebb32298023a465fa41df5d1",
        "github.com/NVIDIA/nvtrust, root of reference manifests",
    ),
)

NVIDIA_SERVICE: Final = (  # intermediates: the vendor does not publish their root with tokens
    Pin(
        "NVIDIA Attestation Service GPU Intermediate 002",
        "dd7b6aa74fdbb74a38baa0413726e733d415de22e445a3f6efe2cebe2cfd8703",
        "github.com/openpcc/openpcc, attestation/verify/nras_root.pem",
    ),
    Pin(
        "NVIDIA Attestation Service GPU Intermediate 003",
        "c76ceed40610efa606864db52c167fbbd6c819de2c0ea5c01acb47ce9e5dc54d",
        "github.com/openpcc/openpcc, attestation/verify/nras_root.pem",
    ),
    Pin(
        "NVIDIA Attestation Service GPU Intermediate 004",
        "2df8907cf4d6c277b855d407ec178a649930a8e73f7294e8fce66e6ee27c5175",
        "github.com/confidential-dot-ai/attestation-rs, x5c of a token",
    ),
)

AWS_NITRO: Final = (
    Pin(
        "AWS Nitro Enclaves Root G1",
        "641a0321a3e244efe456463195d606317ed7cdcc3c1756e09893f3c68f79bb5b",
        "aws-nitro-enclaves.amazonaws.com, AWS_NitroEnclaves_Root-G1.zip",
    ),
)

TPM_CLOUDS: Final = (
    Pin(
        "Azure Virtual TPM Root Certificate Authority 2023",
        "e6c596b17f8ffefba5c300f714cfb1260c6028704ecf7becc4ab5018efb00e95",
        "learn.microsoft.com, trusted launch of virtual machines",
    ),
    Pin(
        "Google Compute Engine EK/AK CA Root",
        "594759594b9b61524f6c8ef668f7177f7b9066bc0674f2f49fe9e052be78beb2",
        "privateca-content of Google Compute Engine, named in AK certificates",
    ),
)
