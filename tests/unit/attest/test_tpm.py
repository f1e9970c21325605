"""TPM quotes: every recorded case; keys, vouchers, registers and event logs, good and bad."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime, timedelta

import attest_rig
import pytest
import tpm_rig
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from veilrun.attest import pins
from veilrun.attest.bundle import Bundle
from veilrun.attest.certificates import key_sha256
from veilrun.attest.checks import CheckLog
from veilrun.attest.endorsements import Endorsements
from veilrun.attest.event_logs import parse_event_log
from veilrun.attest.kinds import read_evidence
from veilrun.attest.pins import Pin
from veilrun.attest.policy import AllOf, Demands
from veilrun.attest.policy_file import parse_policy
from veilrun.attest.reasons import AppraisalError, Reason
from veilrun.attest.tpm import authenticate as steps
from veilrun.attest.tpm.evidence import parse, recognise
from veilrun.attest.tpm.keys import azure_key
from veilrun.attest.verdict import appraise, require
from veilrun.errors import DecodeError

AT = datetime(2026, 6, 1, tzinfo=UTC)
KEY = ec.derive_private_key(0xA5, ec.SECP256R1())
VALUES = [hashlib.sha256(bytes([number])).digest() for number in range(24)]
NONCE = b"a nonce of ours"


def refused(reason: Reason, evidence: bytes, endorsements: Endorsements | None = None) -> str:
    with pytest.raises(AppraisalError) as refusal:
        tpm_rig.verify(parse(evidence), endorsements, AT)
    assert refusal.value.reason is reason
    return refusal.value.detail


@pytest.mark.parametrize("case", attest_rig.vectors("tpm"), ids=lambda case: case["id"])
def test_recorded_case(case):
    if case["expect"] == "valid":
        attest_rig.judge(case)
        return
    with pytest.raises(AppraisalError) as refusal:
        attest_rig.judge(case)
    assert refusal.value.reason == case["reason"]


def test_every_recorded_file_is_recognised():
    for case in attest_rig.vectors("tpm"):
        data, is_evidence = attest_rig.data(case["evidence"]), "tcg-" not in case["evidence"]
        assert recognise(data) is (is_evidence and not case["evidence"].endswith(".pem"))


def test_a_quote_of_ours_and_what_it_says():
    claims = tpm_rig.verify(parse(tpm_rig.make_quote(NONCE, VALUES, KEY)), at=AT)
    assert claims.nonce == NONCE
    assert claims.measurements == {f"pcr{n}": one.hex() for n, one in enumerate(VALUES)}
    assert claims.identity == {"attestation_key": key_sha256(KEY.public_key()).hex()}
    assert claims.versions == {"firmware": "0.0.0.0"}
    assert claims.debug is None and claims.tcb is None


def test_registers_that_are_not_quoted_are_not_claimed():
    message = tpm_rig.quote_bytes(NONCE, VALUES, range(0, 8))
    claims = tpm_rig.verify(parse(tpm_rig.make_quote(NONCE, VALUES, KEY, message)), at=AT)
    assert list(claims.measurements) == [f"pcr{n}" for n in range(8)]


def test_another_register_value_is_refused():
    for place in range(24):
        body = json.loads(tpm_rig.make_quote(NONCE, VALUES, KEY))
        body["pcrs"][place] = "00" * 32
        refused(Reason.DIGEST, json.dumps(body).encode())


def test_another_key_is_refused():
    body = json.loads(tpm_rig.make_quote(NONCE, VALUES, KEY))
    other = ec.derive_private_key(0xA6, ec.SECP256R1())
    theirs = json.loads(tpm_rig.make_quote(NONCE, VALUES, other))
    body["attestation_key"] = theirs["attestation_key"]
    refused(Reason.SIGNATURE, json.dumps(body).encode())


def test_a_key_of_another_kind_is_refused():
    data = attest_rig.data("tpm/azure-tdx-quote-v1.json")
    ours = json.loads(tpm_rig.make_quote(NONCE, VALUES, KEY))
    body = json.loads(data) | {"attestation_key": ours["attestation_key"]}
    refused(Reason.SIGNATURE, json.dumps(body).encode())


def test_no_key_at_all_and_no_signature_at_all():
    body = json.loads(tpm_rig.make_quote(NONCE, VALUES, KEY))
    del body["attestation_key"]
    refused(Reason.NO_ENDORSEMENT, json.dumps(body).encode())
    refused(Reason.SIGNATURE, tpm_rig.quote_bytes(NONCE, VALUES))


# --- who vouches ------------------------------------------------------------------------------


def certify(
    *, usage: str | None = "2.23.133.8.3", ca: bool = False, signs: bool = True
) -> tuple[x509.Certificate, x509.Certificate]:
    """A certificate for our key and the root that made it."""
    root_key = ec.derive_private_key(0xB0, ec.SECP256R1())
    names = [
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, one)]) for one in ("cloud root", "AK")
    ]

    def builder(subject: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(names[0])
            .public_key(key)
            .serial_number(7)
            .not_valid_before(AT - timedelta(days=1))
            .not_valid_after(AT + timedelta(days=1))
        )

    root = (
        builder(names[0], root_key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(root_key, hashes.SHA256())
    )
    uses = x509.KeyUsage(signs, False, not signs, False, False, False, False, False, False)
    leaf = (
        builder(names[1], KEY.public_key())
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(uses, critical=True)
    )
    if usage:
        extended = x509.ExtendedKeyUsage([x509.ObjectIdentifier(usage)])
        leaf = leaf.add_extension(extended, critical=False)
    return leaf.sign(root_key, hashes.SHA256()), root


def test_a_certificate_vouches_for_a_key(monkeypatch):
    quote = tpm_rig.make_quote(NONCE, VALUES, KEY)
    for usage in ("2.23.133.8.3", None):
        leaf, root = certify(usage=usage)
        at_hand = Endorsements((leaf, root))
        refused(Reason.CHAIN, quote, at_hand)  # that root is not pinned
        pin = Pin("ours", root.fingerprint(hashes.SHA256()).hex(), "this test")
        monkeypatch.setattr(steps, "TPM_CLOUDS", (pin,))
        claims = tpm_rig.verify(parse(quote), at_hand, AT)
        assert claims.identity["vouched_by"] == "certificate"
        with pytest.raises(AppraisalError) as refusal:
            tpm_rig.verify(parse(quote), at_hand, AT + timedelta(days=2))
        assert refusal.value.reason is Reason.EXPIRED
        monkeypatch.setattr(steps, "TPM_CLOUDS", pins.TPM_CLOUDS)


@pytest.mark.parametrize(
    "wrong", [{"usage": "2.23.133.8.1"}, {"ca": True}, {"signs": False}], ids=str
)
def test_a_certificate_for_something_else_does_not(wrong, monkeypatch):
    leaf, root = certify(**wrong)
    pin = Pin("ours", root.fingerprint(hashes.SHA256()).hex(), "this test")
    monkeypatch.setattr(steps, "TPM_CLOUDS", (pin,))
    body = json.loads(tpm_rig.make_quote(NONCE, VALUES, KEY))
    del body["attestation_key"]
    refused(Reason.NO_ENDORSEMENT, json.dumps(body).encode(), Endorsements((leaf, root)))


def test_a_policy_must_name_a_key_that_nobody_vouches_for():
    (evidence,) = read_evidence(tpm_rig.make_quote(NONCE, VALUES, KEY))

    def judged(policy: str) -> None:
        rules: AllOf = parse_policy(policy)
        require(appraise(Bundle((evidence,)), rules, Demands(NONCE), AT))

    named = key_sha256(KEY.public_key()).hex()
    judged(f'[tpm]\nattestation_keys = ["{named}"]')
    for policy in ("", f'[tpm]\nattestation_keys = ["{"00" * 32}"]'):
        with pytest.raises(AppraisalError) as refusal:
            judged(policy)
        assert refusal.value.reason is Reason.CHAIN


def test_the_paravisors_key():
    good = {"kid": "HCLAkPub", "kty": "RSA", "e": "AQAB", "n": "ALk" + "A" * 340 + "B"}
    bad = [
        {},
        {"keys": 5},
        {"keys": []},
        {"keys": [good, good]},
        {"keys": [good | {"kty": "EC"}]},
        {"keys": [good | {"e": "A" * 5000}]},
        {"keys": [good | {"n": None}]},
        {"keys": [good | {"e": "AA"}]},
    ]
    for one in bad:
        with pytest.raises(DecodeError):
            azure_key(json.dumps(one).encode())


# --- event logs -------------------------------------------------------------------------------


def replayed_quote(log: bytes) -> bytes:
    values = [bytes(32)] * 24
    for number, value in parse_event_log(log).replay("sha256").items():
        values[number] = value
    return tpm_rig.make_quote(NONCE, values, KEY)


def test_an_event_log_is_replayed():
    log = attest_rig.data("tpm/tcg-eventlog-dstack.bin")
    check = CheckLog("tpm")
    at_hand = Endorsements(event_logs=(log,))
    steps.authenticate(parse(replayed_quote(log)), at_hand, AT, check)
    assert ("event log", "passed") in [(one.name, one.outcome) for one in check.checks]
    refused(Reason.EVENT_LOG, tpm_rig.make_quote(NONCE, VALUES, KEY), at_hand)


def test_logs_of_other_things_at_hand():
    tee = attest_rig.data("sgx-tdx/tdx-ccel-live.bin")
    quote = tpm_rig.make_quote(NONCE, VALUES, KEY)
    assert "none of those" in refused(Reason.EVENT_LOG, quote, Endorsements(event_logs=(tee,)))
    ours = attest_rig.data("tpm/tcg-eventlog-dstack.bin")
    tpm_rig.verify(parse(replayed_quote(ours)), Endorsements(event_logs=(tee, ours)), AT)
    refused(Reason.EVENT_LOG, quote, Endorsements(event_logs=(b"nonsense",)))
