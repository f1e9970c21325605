"""Real NVIDIA evidence for tests, and what each recorded case means in calls of `attest.nvidia`."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from veilrun.attest.checks import CheckLog
from veilrun.attest.claims import Claims
from veilrun.attest.endorsements import Endorsements
from veilrun.attest.nvidia import authenticate, evidence, service
from veilrun.attest.nvidia.manifest import Manifest, verified_manifest
from veilrun.attest.pins import NVIDIA_MANIFESTS, Pin
from veilrun.attest.reasons import AppraisalError, Reason

FOLDER = Path(__file__).resolve().parents[2] / "shared" / "attestation"
AT = datetime(2025, 6, 1, tzinfo=UTC)


def cases() -> list[dict[str, Any]]:
    """All recorded cases of NVIDIA; none where they are absent."""
    if not FOLDER.is_dir():
        return []
    recorded = json.loads((FOLDER / "vectors.json").read_text("utf-8"))["vectors"]
    return [one for one in recorded if one["kind"] == "nvidia"]


def data(name: str) -> bytes:
    """A file of the folder; without it the test is skipped."""
    if not FOLDER.is_dir():
        pytest.skip("needs recorded evidence (../shared/attestation), which is not here")
    return (FOLDER / "nvidia" / name).read_bytes()


def endorsements(*names: str) -> Endorsements:
    """Certificates and manifests of these files."""
    files = [(name, data(name)) for name in names]
    return Endorsements(
        certificates=tuple(
            one
            for name, content in files
            if name.endswith(".pem")
            for one in x509.load_pem_x509_certificates(content)
        ),
        manifests=tuple(content for name, content in files if name.endswith(".xml")),
    )


def time(text: str) -> datetime:
    """A time as cases write it."""
    return datetime.fromisoformat(text)


def devices(
    name: str, known: Endorsements, at: datetime, nonce: str | None = None
) -> tuple[list[Claims], CheckLog]:
    """Every device in a file, verified, its nonce compared as a policy does."""
    log, claims = CheckLog("nvidia"), []
    for part in evidence.split(data(name)):
        claims.append(authenticate.authenticate(evidence.parse(part), known, at, log))
        if nonce is not None and claims[-1].nonce != bytes.fromhex(nonce):
            raise AppraisalError(Reason.NONCE, "nonce", "another one")
    return claims, log


def judge(case: dict[str, Any]) -> list[Claims] | Manifest | None:
    """The case's evidence, verified as the case means it; raises where it is refused."""
    name, at = Path(case["evidence"]).name, time(case["at"])
    uses = [Path(one).name for one in case.get("uses", [])]
    if name.startswith("rim-"):
        wrong_root = "nvidia-rim-root-wrong.pem" in uses
        pins = tuple(_pin(one) for one in uses) if wrong_root else NVIDIA_MANIFESTS
        return verified_manifest(data(name), endorsements(*uses), at, pins=pins)
    if name == "nras-x5c-chain.json":
        signer, *rest = service.parse_chain(data(name))
        service.verify_signer(signer, Endorsements(tuple(rest)), at)
        return None
    if name.startswith("nras-leaf"):
        service.verify_signer(x509.load_pem_x509_certificate(data(name)), endorsements(*uses), at)
        return None
    if name.endswith(".txt") and not any(one.endswith("-chain.pem") for one in uses):
        uses.append(name.replace("-report.txt", "-chain.pem"))
    return devices(name, endorsements(*uses), at, case.get("nonce"))[0]


def _pin(name: str) -> Pin:
    root = x509.load_pem_x509_certificate(data(name))
    return Pin(name, root.fingerprint(hashes.SHA256()).hex(), "test")
