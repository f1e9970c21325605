"""SEV-SNP evidence, damaged: flipped bytes are refused, and only our own errors come out."""

from __future__ import annotations

import json
import random
from datetime import UTC, datetime
from functools import cache

import pytest
from amd_rig import endorsements
from attest_rig import data
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from damage import REFUSED, examples, flipped, with_damage
from hypothesis import given
from hypothesis import strategies as st

from veilrun.attest import hcl
from veilrun.attest.amd import authenticate, evidence
from veilrun.attest.certificates import read_certificate, read_der
from veilrun.attest.checks import CheckLog
from veilrun.attest.claims import Claims
from veilrun.attest.endorsements import Endorsements
from veilrun.attest.signatures import is_signed_by
from veilrun.errors import DecodeError, VerificationError

AT = datetime(2026, 7, 1, tzinfo=UTC)
CERTIFICATES = {
    "report": ["snp-genoa-v5-vcek.der", "amd-genoa-ask.der", "amd-genoa-ark.der"],
    "hcl": ["snp-genoa-v3-azure-vcek.pem", "amd-genoa-ask.der", "amd-genoa-ark.der"],
    "scale": ["snp-milan-v3-dstack-vcek.pem", "amd-milan-ask.der", "amd-milan-ark.der"],
    "json": ["amd-milan-ark.der"],
}
FILES = {
    "report": "snp-genoa-v5-report.bin",
    "hcl": "snp-genoa-v3-azure-hcl-report.bin",
    "scale": "snp-milan-v3-dstack-attestation.scale",
    "json": "snp-milan-v3-dstack-attestation.json",
}


def subject(kind: str) -> bytes:
    return data(f"sev-snp/{FILES[kind]}")


@cache
def known(kind: str) -> Endorsements:
    return endorsements([f"sev-snp/{one}" for one in CERTIFICATES[kind]])


def examine(kind: str, content: bytes) -> Claims:
    """What the command does with a file of this kind."""
    evidence.recognise(content)
    return authenticate.authenticate(evidence.parse(content), known(kind), AT, CheckLog("amd"))


def still_holds(parsed: evidence.SnpEvidence, key: x509.Certificate) -> bool:
    """Whether signature and runtime data hold."""
    report = parsed.report
    if not is_signed_by(key, *report.signature, report.signed):
        return False
    if parsed.runtime is not None:
        try:
            hcl.verify_runtime_data(parsed.runtime, report.report_data, "test")
        except VerificationError:
            return False
    return True


@pytest.mark.parametrize("kind", ["report", "hcl"])
def test_every_byte_counts(kind):
    """Of a paravisor's report as well: header, TEE report, runtime data and padding."""
    good, draw = subject(kind), random.Random(1)
    key = known(kind).certificates[0]
    assert still_holds(evidence.parse(good), key)
    for at in range(len(good)):
        try:
            parsed = evidence.parse(flipped(good, at, draw.randrange(8)))
        except DecodeError:
            continue
        assert not still_holds(parsed, key), at


def test_flipped_reports_are_refused():
    good, draw = subject("report"), random.Random(2)
    examine("report", good)
    for _ in range(300):
        with pytest.raises(REFUSED):
            examine("report", flipped(good, draw.randrange(len(good)), draw.randrange(8)))


def test_flipped_envelopes_are_refused_or_mean_the_same():
    """Events, configuration and the text of host data are no part of what the chip signs."""
    good, draw = subject("scale"), random.Random(3)
    genuine = examine("scale", good)
    signed = range(4 + 1184)
    for _ in range(500):
        at = draw.randrange(len(good))
        try:
            claims = examine("scale", flipped(good, at, draw.randrange(8)))
        except REFUSED:
            continue
        assert at not in signed
        assert claims == genuine


@pytest.mark.parametrize("which", [0, 1])
def test_every_certificate_of_the_chain_counts(which):
    draw, n_parsed = random.Random(4), 0
    chain = list(known("report").certificates)
    der = chain[which].public_bytes(Encoding.DER)
    parsed = evidence.parse(subject("report"))
    for _ in range(300):
        try:
            other = read_certificate(flipped(der, draw.randrange(len(der)), draw.randrange(8)))
        except DecodeError:
            continue
        n_parsed += 1
        damaged = Endorsements((*chain[:which], other, *chain[which + 1 :]))
        with pytest.raises(VerificationError):
            authenticate.authenticate(parsed, damaged, AT, CheckLog("amd"))
    assert n_parsed > 100


def test_damaged_revocation_lists_give_only_our_errors():
    """Damaged so that they still parse: names in them are decoded only when they are read."""
    (crl,) = endorsements(["sev-snp/amd-genoa-crl-2024-10.pem"]).revocations
    der, parsed, n_parsed = crl.public_bytes(Encoding.DER), evidence.parse(subject("hcl")), 0
    at = datetime(2025, 9, 1, tzinfo=UTC)
    for offset in range(len(der)):
        try:
            damaged = read_der(flipped(der, offset, offset % 8))
        except DecodeError:
            continue
        n_parsed += 1
        try:
            authenticate.authenticate(parsed, known("hcl") + damaged, at, CheckLog("amd"))
        except VerificationError:
            continue
        assert damaged.revocations[0].issuer != crl.issuer
    assert n_parsed > 500


@pytest.mark.parametrize("kind", FILES)
@examples(150)
@given(source=st.data())
def test_damage_gives_only_our_errors(kind, source):
    content = with_damage(source, subject(kind))
    try:
        examine(kind, content)
    except REFUSED:
        pass


def test_damage_inside_the_hex_of_json():
    draw = random.Random(5)
    good = bytes.fromhex(json.loads(subject("json"))["attestation"])
    genuine = examine("json", subject("json"))
    for _ in range(300):
        damaged = flipped(good, draw.randrange(len(good)), draw.randrange(8))
        try:
            claims = examine("json", json.dumps({"attestation": damaged.hex()}).encode())
        except REFUSED:
            continue
        assert claims == genuine


@pytest.mark.parametrize(
    "tail",
    [b"\xfe\xff\xff\xff", b"\x03\xff\xff\xff\xff", b"\x02\x00\x00\x00", b"\x01\x00", b""],
)
def test_lengths_of_an_envelope_are_bounded(tail):
    with pytest.raises(DecodeError):
        evidence.parse(b"\0\3" + tail + bytes(64))
    head = subject("scale")[: 4 + 1184]
    with pytest.raises(DecodeError):
        evidence.parse(head + tail + bytes(64))


def test_nothing_huge_is_read():
    with pytest.raises(DecodeError, match="over"):
        evidence.parse(b"HCLA" + bytes(1 << 17))
    with pytest.raises(DecodeError, match="over"):
        evidence.parse(subject("scale") + bytes(1 << 20))
    with pytest.raises(DecodeError):
        evidence.parse(bytes(1 << 20))
