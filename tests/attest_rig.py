"""Real evidence for tests: what each recorded case means to `appraise`; evidence that we make."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import intel_rig
import nvidia_rig
import pytest
import tpm_rig
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from veilrun.attest.bundle import Bundle
from veilrun.attest.chains import verify_chain
from veilrun.attest.claims import Kind
from veilrun.attest.files import read
from veilrun.attest.kinds import FAMILIES
from veilrun.attest.pins import TPM_CLOUDS
from veilrun.attest.policy import AllOf, Demands, Rule
from veilrun.attest.rules import STRICT_TCB, UNKNOWN, AcceptedTcb, Freshness, NoDebug
from veilrun.attest.verdict import appraise, require

FOLDER = Path(__file__).resolve().parents[2] / "shared" / "attestation"
ABSENT = "needs recorded evidence (../shared/attestation), which is not here"
_KINDS = {
    "sgx-tdx": (Kind.INTEL_SGX, Kind.INTEL_TDX),
    "sev-snp": (Kind.AMD_SEV_SNP,),
    "nvidia": (Kind.NVIDIA_GPU, Kind.NVIDIA_SWITCH),
    "nitro": (Kind.AWS_NITRO,),
    "tpm": (Kind.TPM,),
}
# Altered as well: refused for that before measurements are compared, or before the digest is.
_ALSO = {"hopper-535-driver-mismatch": "digest", "rim-driver-570-124-03-expired": "expired"}


def vectors(kind: str | None = None) -> list[dict[str, Any]]:
    """All recorded cases, or those of one kind; none where they are absent."""
    if not FOLDER.is_dir():
        return []
    recorded = json.loads((FOLDER / "vectors.json").read_text("utf-8"))["vectors"]
    return [one for one in recorded if kind in (None, one["kind"])]


def path(name: str) -> Path:
    """A file of the folder; without it the test is skipped."""
    if not FOLDER.is_dir():
        pytest.skip(ABSENT)
    return FOLDER / name


def data(name: str) -> bytes:
    """Its content."""
    return path(name).read_bytes()


def reasons(case: dict[str, Any]) -> set[str]:
    """Every reason that is right for refusing a case."""
    return {case["reason"], _ALSO.get(case["id"], case["reason"])}


def judge(case: dict[str, Any]) -> None:
    """Verify a case as it means it; raises where it is refused."""
    if not all(any(kind in one.kinds for one in FAMILIES) for kind in _KINDS[case["kind"]]):
        pytest.skip(f"no verifier of {case['kind']} in this version")
    if not tpm_rig.can_judge(case):
        pytest.skip(f"no verifier of {tpm_rig.NEEDS[case['id']]} in this version")
    name, at = Path(case["evidence"]).name, nvidia_rig.time(case["at"])
    if name.startswith(("rim-", "nras-")):  # manifests and certificates are no evidence
        nvidia_rig.judge(case)
    elif "ak-cert" in name:
        (leaf,) = read(data(case["evidence"])).endorsements.certificates
        verify_chain(leaf, bundle(case["uses"]).endorsements, TPM_CLOUDS, at, "attestation key")
    elif intel_rig.is_special(case):
        intel_rig.judge(case)
    elif case["kind"] == "tpm" and tpm_rig.is_special(case):
        tpm_rig.judge(case)
    else:
        nonce = case.get("nonce")
        demands = Demands(None if nonce is None else bytes.fromhex(nonce))
        require(appraise(bundle(files_of(case)), policy_for(case), demands, at))


def files_of(case: dict[str, Any]) -> list[str]:
    """Evidence and all that it needs."""
    names = [case["evidence"], *case.get("uses", [])]
    if case["evidence"].endswith("-report.txt") and not any("-chain.pem" in one for one in names):
        names.append(case["evidence"].replace("-report.txt", "-chain.pem"))
    return names


def bundle(names: Sequence[str]) -> Bundle:
    """What is in these files together."""
    total = Bundle()
    for name in names:
        total = total + read(data(name))
    return total


def policy_for(case: dict[str, Any]) -> AllOf:
    """What a case takes for granted: any grade that its platform has, debug if it says so."""
    status = case.get("facts", {}).get("tcb_status", UNKNOWN)
    accepted = {kind: words | {status, UNKNOWN, "not-run"} for kind, words in STRICT_TCB.items()}
    rules: list[Rule] = [AcceptedTcb(accepted), Freshness(needs_nonce=False)]
    if not case["id"].endswith(("debug-allowed", "debug-signature")):
        rules.append(NoDebug())
    return AllOf(tuple(rules))


@dataclass(frozen=True)
class MadeGpu:
    """A GPU of our own: files of its evidence, chain and revocation list; SHA-256 of its root."""

    report: bytes
    chain: bytes
    revocations: bytes
    root_sha256: str


def make_gpu(at: datetime) -> MadeGpu:
    """A real report, signed by a chain of our own, whose second certificate is revoked."""
    keys = [ec.generate_private_key(ec.SECP384R1()) for _ in range(3)]
    names = [
        _name("Test Root"),
        _name("GH100 A01 GSP BROM", "41E23D711E1C4FBFAC"),
        _name("GH100 A01 GSP FMC LF"),
    ]
    root = _certificate(names[0], names[0], keys[0], keys[0], at)
    rom = _certificate(names[1], names[0], keys[1], keys[0], at)
    leaf = _certificate(names[2], names[1], keys[2], keys[1], at, is_device=True)
    report = bytes.fromhex(data("nvidia/hopper-535-86-09-report.txt").decode())[:-96]
    r, s = decode_dss_signature(keys[2].sign(report, ec.ECDSA(hashes.SHA384())))
    revoked = x509.RevokedCertificateBuilder().serial_number(rom.serial_number)
    crl = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(names[0])
        .last_update(at - timedelta(days=1))
        .next_update(at + timedelta(days=1))
        .add_revoked_certificate(revoked.revocation_date(at).build())
        .sign(keys[0], hashes.SHA384())
    )
    return MadeGpu(
        report + r.to_bytes(48, "big") + s.to_bytes(48, "big"),
        b"".join(one.public_bytes(Encoding.PEM) for one in (leaf, rom, root)),
        crl.public_bytes(Encoding.PEM),
        root.fingerprint(hashes.SHA256()).hex(),
    )


def _name(common: str, serial: str | None = None) -> x509.Name:
    parts = [x509.NameAttribute(NameOID.COMMON_NAME, common)]
    if serial is not None:
        parts.append(x509.NameAttribute(NameOID.SERIAL_NUMBER, serial))
    return x509.Name(parts)


def _certificate(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    signer: ec.EllipticCurvePrivateKey,
    at: datetime,
    *,
    is_device: bool = False,
) -> x509.Certificate:
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(at - timedelta(days=1))
        .not_valid_after(at + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=not is_device, path_length=None), critical=True)
    )
    if is_device:  # the extension that only certificates of a device's firmware have
        oid = x509.ObjectIdentifier("2.23.133.5.4.1")
        builder = builder.add_extension(x509.UnrecognizedExtension(oid, b"\x30\x00"), False)
    return builder.sign(signer, hashes.SHA384())


AT = datetime(2025, 6, 1, tzinfo=UTC)
