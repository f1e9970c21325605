"""NVIDIA's evidence, damaged: flipped bytes are refused, and only our own errors come out."""

from __future__ import annotations

import base64
import json
import random
from datetime import UTC, datetime
from functools import cache

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from damage import REFUSED, examples, flipped, with_damage
from hypothesis import given
from hypothesis import strategies as st
from nvidia_rig import AT, data, endorsements

from veilrun.attest.checks import CheckLog
from veilrun.attest.endorsements import Endorsements
from veilrun.attest.nvidia import authenticate, evidence, manifest, service
from veilrun.errors import DecodeError, VerificationError

REPORT, CHAIN = "hopper-580-159-03-report.txt", "hopper-580-159-03-chain.pem"
VBIOS = "rim-vbios-1010-0200-882-96005e0001.xml"
VBIOS_AT = datetime(2024, 6, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("report", "chain"),
    [(REPORT, CHAIN), ("ls10-switch-report.txt", "ls10-switch-chain.pem")],
)
def test_every_byte_of_a_report_is_signed(report, chain):
    good, draw = bytes.fromhex(data(report).decode()), random.Random(1)
    leaf = endorsements(chain).certificates[0]
    assert authenticate._has_signed(leaf, evidence.parse(good).report)
    for at in range(len(good)):
        try:
            parsed = evidence.parse(flipped(good, at, draw.randrange(8))).report
        except DecodeError:
            continue
        assert not authenticate._has_signed(leaf, parsed), at


def test_flipped_reports_are_refused():
    good, draw = bytes.fromhex(data(REPORT).decode()), random.Random(2)
    known = endorsements(CHAIN)
    for _ in range(200):
        damaged = flipped(good, draw.randrange(len(good)), draw.randrange(8))
        with pytest.raises(REFUSED):
            authenticate.authenticate(evidence.parse(damaged), known, AT, CheckLog("gpu"))


def test_every_certificate_of_the_chain_counts():
    draw = random.Random(3)
    report, chain = evidence.parse(data(REPORT)), list(endorsements(CHAIN).certificates)
    n_parsed = 0
    for _ in range(400):
        which = draw.randrange(len(chain))
        der = chain[which].public_bytes(Encoding.DER)
        try:
            other = x509.load_der_x509_certificate(flipped(der, draw.randrange(len(der))))
        except ValueError:
            continue
        n_parsed += 1
        known = Endorsements((*chain[:which], other, *chain[which + 1 :]))
        with pytest.raises(VerificationError):
            authenticate.authenticate(report, known, AT, CheckLog("gpu"))
    assert n_parsed > 200


def test_flipped_manifests_are_refused_or_mean_the_same():
    """White space between attributes and the like is no part of what XML says."""
    good, draw = data(VBIOS), random.Random(4)
    signer = manifest._signers(manifest._document(good), "test")[0]
    genuine, n_same = manifest.parse_manifest(good), 0
    end = good.index(b"<ds:KeyInfo>")
    for _ in range(2000):
        damaged = flipped(good, draw.randrange(end), draw.randrange(8))
        try:
            manifest._document(damaged)
            found = manifest._read(manifest._signed(damaged, signer, VBIOS_AT, "test"))
        except REFUSED:
            continue
        n_same += 1
        assert found == genuine
    assert n_same < 40


@cache
def subjects() -> dict[str, bytes]:
    one_gpu = json.loads(data("hopper-evidence-590-12.json"))
    return {
        "hex": data(REPORT),
        "binary": bytes.fromhex(data("ls10-switch-report.txt").decode()),
        "json": json.dumps(one_gpu).encode(),
        "manifest": data(VBIOS),
        "token": data("nras-token-hopper.json"),
        "chain": data("nras-x5c-chain.json"),
    }


def examine(kind: str, content: bytes) -> None:
    """What the command does with a file of this kind."""
    if kind == "manifest":
        known = endorsements("hopper-535-86-09-chain.pem") + Endorsements(manifests=(content,))
        report = evidence.parse(data("hopper-535-86-09-report.txt"))
        authenticate.authenticate(report, known, VBIOS_AT, CheckLog("gpu"))
    elif kind == "token":
        service.parse_token(content)
    elif kind == "chain":
        signer, *rest = service.parse_chain(content)
        service.verify_signer(signer, Endorsements(tuple(rest)), datetime(2026, 6, 9, tzinfo=UTC))
    else:
        evidence.recognise(content)
        for part in evidence.split(content):
            known = endorsements(CHAIN, "ls10-switch-chain.pem")
            authenticate.authenticate(evidence.parse(part), known, AT, CheckLog("gpu"))


@pytest.mark.parametrize("kind", ["hex", "binary", "json", "manifest", "token", "chain"])
@examples(150)
@given(source=st.data())
def test_damage_gives_only_our_errors(kind, source):
    content = with_damage(source, subjects()[kind])
    try:
        examine(kind, content)
    except REFUSED:
        pass


@pytest.mark.parametrize("kind", ["json", "chain"])
def test_damaged_certificates_give_only_our_errors(kind):
    """Inside the encoding, where flips still parse as certificates."""
    draw, body = random.Random(5), json.loads(subjects()[kind])
    for _ in range(300):
        if kind == "json":
            entry = dict(body[0])
            pem = bytearray(base64.b64decode(entry["certificate"]))
            at = draw.randrange(len(pem))
            pem[at] = draw.choice(b"ABCDEFGHabcdefgh0123456789+/")
            entry["certificate"] = base64.b64encode(pem).decode()
            content = json.dumps([entry]).encode()
        else:
            x5c = list(body["x5c"])
            which = draw.randrange(2)
            at = draw.randrange(len(x5c[which]))
            x5c[which] = x5c[which][:at] + draw.choice("ABCDabcd0123") + x5c[which][at + 1 :]
            content = json.dumps({"x5c": x5c}).encode()
        try:
            examine(kind, content)
        except REFUSED:
            pass
