"""Recorded TPM evidence for tests: what each case means; quotes that we make."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import nvidia_rig
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from veilrun.attest.checks import CheckLog
from veilrun.attest.claims import Claims, Kind
from veilrun.attest.endorsements import Endorsements
from veilrun.attest.event_logs import parse_event_log
from veilrun.attest.files import read
from veilrun.attest.hcl import parse_hcl
from veilrun.attest.kinds import FAMILIES
from veilrun.attest.reasons import AppraisalError, Reason
from veilrun.attest.tpm.authenticate import authenticate
from veilrun.attest.tpm.evidence import TpmEvidence, encode_evidence, parse
from veilrun.attest.tpm.keys import azure_key
from veilrun.attest.tpm.quote import START, parse_signature

FOLDER = nvidia_rig.FOLDER
NEEDS = {"azure-snp-v1": Kind.AMD_SEV_SNP, "azure-snp-live": Kind.AMD_SEV_SNP}
NEEDS |= {"azure-snp-v1-wrong-nonce": Kind.AMD_SEV_SNP, "azure-tdx-v1": Kind.INTEL_TDX}


def data(name: str) -> bytes:
    """A recorded file; without it the test is skipped."""
    if not FOLDER.is_dir():
        pytest.skip("needs recorded evidence (../shared/attestation), which is not here")
    return (FOLDER / name).read_bytes()


def is_special(case: dict[str, Any]) -> bool:
    """Whether a case is not a file that `appraise` takes as it is: no key, no signature, a log."""
    name = Path(case["evidence"]).name
    return name.startswith(("azure-tdx-quote", "azure-snp-quote", "tpm-quote", "tcg-"))


def can_judge(case: dict[str, Any]) -> bool:
    """Whether the parts are there that its evidence rests on."""
    needed = NEEDS.get(case["id"])
    return needed is None or any(needed in one.kinds for one in FAMILIES)


def judge(case: dict[str, Any]) -> None:
    """A special case: under the key of the HCL report that it names; raises where refused."""
    name, facts = case["evidence"], case.get("facts", {})
    if name.endswith("eventlog-dstack.bin"):
        log = parse_event_log(data(name))
        registers = {str(n): one.hex() for n, one in log.replay("sha256").items()}
        assert registers == facts["pcr_sha256"]
        assert len(log.events) + 1 == facts["events"]  # the first one says what a log is
        return
    evidence = parse(data(name))
    quote = evidence.quote
    if facts:
        assert quote.nonce.hex() == facts["nonce"]
        assert list(quote.selected) == facts["pcrs"]
        assert quote.digest.hex() == facts["pcr_digest"]
    if case["id"] == "tpm-quote-body":
        return
    if name.endswith(".msg"):
        evidence = replace(evidence, signature=parse_signature(data(case["uses"][0])))
    report = parse_hcl(data(case["uses"][-1]))
    claims = verify(replace(evidence, key=azure_key(report.runtime_data)), at=case["at"])
    if claims.nonce != bytes.fromhex(case["nonce"]):
        raise AppraisalError(Reason.NONCE, "nonce", "another one")


def verify(
    evidence: TpmEvidence, endorsements: Endorsements | None = None, at: Any = None
) -> Claims:
    """Authenticate, with a log that nobody reads."""
    return authenticate(evidence, endorsements or Endorsements(), at, CheckLog("tpm"))


def quote_bytes(nonce: bytes, values: list[bytes], selected: range = range(24)) -> bytes:
    """What a TPM signs, over registers of SHA-256."""
    bitmap = sum(1 << number for number in selected).to_bytes(3, "little")
    digest = hashlib.sha256(b"".join(values[number] for number in selected)).digest()
    return b"".join(
        [
            *(START, _sized(b"\0\x0b" + bytes(32)), _sized(nonce), bytes(16), b"\1", bytes(8)),
            *((1).to_bytes(4, "big"), b"\0\x0b\3", bitmap, _sized(digest)),
        ]
    )


def make_quote(
    nonce: bytes, values: list[bytes], key: ec.EllipticCurvePrivateKey, message: bytes = b""
) -> bytes:
    """A file of our form, signed by `key`."""
    message = message or quote_bytes(nonce, values)
    r, s = decode_dss_signature(key.sign(message, ec.ECDSA(hashes.SHA256())))
    parts = [_sized(one.to_bytes(32, "big")) for one in (r, s)]
    signature = b"\0\x18\0\x0b" + b"".join(parts)
    pem = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return encode_evidence(message, signature, values, pem.decode())


def endorsements(*names: str) -> Endorsements:
    """What is in these files."""
    return sum((read(data(one)).endorsements for one in names), Endorsements())


def _sized(data: bytes) -> bytes:
    return len(data).to_bytes(2, "big") + data
