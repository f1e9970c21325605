"""NVIDIA's evidence: every recorded case, and what is refused under which name."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from datetime import UTC, datetime

import nvidia_rig
import pytest
from nvidia_rig import AT, data, endorsements

from veilrun.attest.chains import verified_chain, verify_chain
from veilrun.attest.checks import CheckLog
from veilrun.attest.claims import Kind
from veilrun.attest.endorsements import Endorsements
from veilrun.attest.nvidia import authenticate, evidence, references, service
from veilrun.attest.nvidia.manifest import Manifest, parse_manifest, verified_manifest
from veilrun.attest.nvidia.report import parse_report
from veilrun.attest.pins import NVIDIA_DEVICE, NVIDIA_MANIFESTS
from veilrun.attest.reasons import AppraisalError, Reason
from veilrun.errors import DecodeError

REPORT, CHAIN = "hopper-580-159-03-report.txt", "hopper-580-159-03-chain.pem"
EIGHT = "hopper-evidence-590-12-eight-gpus.json"
VBIOS = "rim-vbios-1010-0200-882-96005e0001.xml"


@pytest.mark.parametrize("case", nvidia_rig.cases(), ids=lambda case: case["id"])
def test_recorded_case(case):
    if case["expect"] == "reject":
        # Both are altered as well: the first is refused before its measurements are compared.
        also = {
            "hopper-535-driver-mismatch": "digest",
            "rim-driver-570-124-03-expired": "expired",
        }.get(case["id"])
        with pytest.raises(AppraisalError) as refusal:
            nvidia_rig.judge(case)
        assert refusal.value.reason in {case["reason"], also}
        return
    result, facts = nvidia_rig.judge(case), case.get("facts", {})
    if isinstance(result, Manifest):
        assert (result.version, len(result.references)) == (
            facts["version"],
            facts["active_measurements"],
        )
    for claims in result if isinstance(result, list) else ():
        assert claims.nonce == bytes.fromhex(case.get("nonce", claims.nonce.hex()))
        assert claims.versions.get("driver") == facts.get("driver", claims.versions.get("driver"))
        assert claims.versions["vbios"] == facts.get("vbios", claims.versions["vbios"])
        blocks = [name for name in claims.measurements if name.startswith("block")]
        assert len(blocks) == facts.get("measurements", len(blocks))
        assert ("fwid" in claims.measurements) == bool(
            facts.get("fwid_match", "fwid" in claims.measurements)
        )
    if "devices" in facts:
        assert len(result) == facts["devices"]


def test_cases_are_there():
    data(REPORT)
    assert len(nvidia_rig.cases()) == 46


def test_the_claims_of_a_gpu():
    (claims,), log = nvidia_rig.devices(REPORT, endorsements(CHAIN), AT)
    assert claims.kind is Kind.NVIDIA_GPU
    assert claims.versions == {"driver": "580.159.03", "vbios": "96.00.74.00.20"}
    assert claims.identity == {"chip": "GH100", "chip_id": "41e23d711e1c4fbfac"}
    assert claims.measurements["block02"].startswith("b558fdac9af53b91")
    assert claims.measurements["feature_flag"] == "0000"
    assert claims.tcb is not None and claims.tcb.status == "not-run"
    assert [(one.name, one.outcome) for one in log.checks] == [
        ("stated nonce", "passed"),
        ("report signature", "passed"),
        ("device certificates", "passed"),
        ("firmware id", "passed"),
        ("vbios reference measurements", "skipped"),
        ("driver reference measurements", "skipped"),
    ]


def test_one_device_keeps_its_identity_across_firmware():
    """570 and 580 were recorded on one GPU, under two firmware certificates."""
    older, newer = (
        nvidia_rig.devices(
            f"hopper-{name}-report.txt", endorsements(f"hopper-{name}-chain.pem"), AT
        )
        for name in ("570-124-03", "580-159-03")
    )
    assert older[0][0].identity == newer[0][0].identity


def test_devices_are_counted_by_identity():
    eight, _ = nvidia_rig.devices(EIGHT, Endorsements(), AT)
    assert len({claims.identity["chip_id"] for claims in eight}) == 8
    same, _ = nvidia_rig.devices("ls10-switch-evidence-duplicated.json", Endorsements(), AT)
    assert len(same) == 4
    assert len({claims.identity["chip_id"] for claims in same}) == 1
    assert {claims.kind for claims in same} == {Kind.NVIDIA_SWITCH}


def test_the_signer_is_found_among_many_certificates():
    chains = ("hopper-535-86-09-chain.pem", "ls10-switch-chain.pem", CHAIN)
    (claims,), _ = nvidia_rig.devices(REPORT, endorsements(*chains), AT)
    assert claims.identity["chip_id"] == "41e23d711e1c4fbfac"


def refused(reason: Reason, name: str, known: Endorsements, at: datetime = AT) -> None:
    with pytest.raises(AppraisalError) as refusal:
        nvidia_rig.devices(name, known, at)
    assert refusal.value.reason is reason, refusal.value


def test_refusals_of_a_report():
    chain = endorsements(CHAIN)
    refused(Reason.NO_ENDORSEMENT, REPORT, Endorsements())
    refused(Reason.SIGNATURE, REPORT, endorsements("blackwell-575-32-chain.pem"))
    refused(Reason.SIGNATURE, "hopper-bad-signature-report.txt", chain)
    refused(Reason.CHAIN, REPORT, Endorsements(chain.certificates[:1]))
    refused(Reason.CHAIN, REPORT, Endorsements(chain.certificates[:4]))
    refused(Reason.NOT_YET_VALID, REPORT, chain, datetime(2021, 1, 1, tzinfo=UTC))


def test_a_manifest_root_is_no_device_root():
    chain = endorsements(CHAIN)
    with pytest.raises(AppraisalError) as refusal:
        verify_chain(chain.certificates[0], chain, NVIDIA_MANIFESTS, AT, "chain")
    assert refusal.value.reason is Reason.CHAIN
    assert len(verified_chain(chain.certificates[0], chain, NVIDIA_DEVICE, AT, "chain")) == 5


def test_firmware_id_of_the_certificate():
    """On its own, because a report cannot be changed: other firmware, the same GPU."""
    report = evidence.parse(data(REPORT)).report
    leaf, other = (
        endorsements(name).certificates[0] for name in (CHAIN, "hopper-570-124-03-chain.pem")
    )
    authenticate._verify_firmware_id(report.firmware_id, leaf)
    for stated, certificate in ((report.firmware_id, other), (bytes(48), leaf), (b"", leaf)):
        with pytest.raises(AppraisalError) as refusal:
            authenticate._verify_firmware_id(stated, certificate)
        assert refusal.value.reason is Reason.MEASUREMENT


def test_a_kind_that_the_certificate_is_not_for():
    chain = list(endorsements(CHAIN).certificates)
    assert authenticate._identity(chain, Kind.NVIDIA_GPU)[0] == "GH100"
    with pytest.raises(AppraisalError) as refusal:
        authenticate._identity(chain, Kind.NVIDIA_SWITCH)
    assert refusal.value.reason is Reason.CHAIN
    with pytest.raises(AppraisalError):
        authenticate._identity(chain[:1], Kind.NVIDIA_GPU)


def test_a_nonce_that_only_the_file_states():
    entries = json.loads(data("hopper-evidence-590-12.json"))
    entries[0]["nonce"] = "00" * 32
    with pytest.raises(AppraisalError) as refusal:
        authenticate.authenticate(
            evidence.parse(json.dumps(entries).encode()), Endorsements(), AT, CheckLog("gpu")
        )
    assert refusal.value.reason is Reason.NONCE


@pytest.mark.parametrize(
    "change",
    [
        lambda one: one.pop("certificate"),
        lambda one: one.update(certificate="LS0t"),
        lambda one: one.update(evidence="not base64!"),
        lambda one: one.update(evidence=7),
        lambda one: one.update(nonce="xyz"),
        lambda one: one.update(surprise=1),
    ],
)
def test_damaged_entries_do_not_parse(change):
    entries = json.loads(data("hopper-evidence-590-12.json"))
    change(entries[0])
    with pytest.raises(DecodeError):
        evidence.parse(json.dumps(entries).encode())


def test_containers():
    text, many = data(REPORT), data(EIGHT)
    binary = bytes.fromhex(text.decode())
    assert evidence.parse(binary).report == evidence.parse(text).report
    assert evidence.split(binary) == (binary,)
    assert len(evidence.split(many)) == 8
    for one in (text, binary, many):
        assert evidence.recognise(one)
    for other in (data(VBIOS), data("nras-token-hopper.json"), data("nvat-claims-h100.json"), b""):
        assert not evidence.recognise(other)
    for wrong in (many, b"[]", b"[1]", b"[" * 100_000, b"11e001f", text[:-1], text + b"00"):
        with pytest.raises(DecodeError):
            evidence.parse(wrong)


def test_manifests_of_two_parts_must_not_overlap():
    driver = parse_manifest(data("rim-driver-gh100-550-144-03.xml"))
    vbios = parse_manifest(data(VBIOS))
    references._verify_apart(driver, vbios)
    index = next(iter(vbios.references))
    both = replace(driver, references={**driver.references, index: frozenset({"00" * 48})})
    with pytest.raises(AppraisalError) as refusal:
        references._verify_apart(both, vbios)
    assert refusal.value.reason is Reason.MEASUREMENT


def test_index_35_counts_only_with_nvdec0():
    report = evidence.parse(data("hopper-535-86-09-report.txt")).report
    wanted = Manifest("GH100", "535.86.09", {35: frozenset({"11" * 48})})
    assert not report.has_nvdec0 and references.mismatches(report, wanted) == []
    switched_on = replace(report, opaque={**report.opaque, 11: b"\xaa"})
    assert references.mismatches(switched_on, wanted) == [35]
    beyond = Manifest("GH100", "535.86.09", {64: frozenset({"11" * 48})})
    assert references.mismatches(report, beyond) == [64]


def test_the_relabelled_driver_manifest_has_other_measurements():
    """The vendor's own case: with the manifest's signature not checked, values still differ."""
    report = evidence.parse(data("hopper-535-86-09-report.txt")).report
    assert references.mismatches(
        report, parse_manifest(data("rim-driver-gh100-535-86-09-altered.xml"))
    )


def test_the_manifest_that_fits_is_chosen():
    """Manifests of other boards, other versions and the test mode are at hand as well."""
    others = (
        "rim-vbios-1010-0200-882-96005e0001-test.xml",
        "rim-vbios-g520-0200-885-9600740001.xml",
        "rim-switch-ls10-96-10-55.xml",
    )
    known = endorsements("hopper-535-86-09-chain.pem", *others, VBIOS)
    known += Endorsements(manifests=(b"<SoftwareIdentity/>", b"<"))
    at = datetime(2024, 6, 1, tzinfo=UTC)
    _, log = nvidia_rig.devices("hopper-535-86-09-report.txt", known, at)
    outcomes = {one.name: one.outcome for one in log.checks}
    assert outcomes["vbios reference measurements"] == "passed"
    assert outcomes["driver reference measurements"] == "skipped"


def test_a_switch_with_its_manifest_is_complete():
    known = endorsements("ls10-switch-chain.pem", "rim-switch-ls10-96-10-55.xml")
    at = datetime(2026, 8, 1, tzinfo=UTC)
    (claims,), _ = nvidia_rig.devices("ls10-switch-report.txt", known, at)
    assert claims.tcb is not None and claims.tcb.status == "success"
    refused(Reason.EXPIRED, "ls10-switch-report.txt", known, datetime(2028, 1, 1, tzinfo=UTC))


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (
            b'colloquialVersion="96.00.5E.00.01"',
            b'colloquialVersion="96.00.5E.00.02"',
            Reason.DIGEST,
        ),
        (b'index="7" active="False"', b'index="7" active="True"', Reason.DIGEST),
        (b"<ns0:Payload", b"<ns0:Extra/><ns0:Payload", Reason.DIGEST),
        (b"<ds:DigestValue>D3Bc", b"<ds:DigestValue>D3Bd", Reason.SIGNATURE),
        (b'Reference URI=""', b'Reference URI="#a"', Reason.SIGNATURE),
        (b"ecdsa-sha384", b"ecdsa-sha256", Reason.SIGNATURE),
        (b"<ds:SignatureValue>", b"<ds:SignatureValue>AAAA", Reason.SIGNATURE),
        (b"<ds:X509Certificate>MIIC", b"<ds:X509Certificate>MIID", Reason.CHAIN),
    ],
)
def test_altered_manifests(old, new, reason):
    text = data(VBIOS)
    assert old in text
    with pytest.raises(AppraisalError) as refusal:
        verified_manifest(
            text.replace(old, new, 1), Endorsements(), datetime(2024, 6, 1, tzinfo=UTC)
        )
    assert refusal.value.reason is reason


def test_a_signed_manifest_wrapped_in_another():
    text = data(VBIOS)
    opened, rest = text.split(b">", 1)
    body, signature = rest.split(b"<ds:Signature ", 1)
    forged = body.replace(b'index="7" active="False"', b'index="7" active="True"')
    wrapped = opened + b">" + forged + b"<Object>" + text + b"</Object><ds:Signature " + signature
    at = datetime(2024, 6, 1, tzinfo=UTC)
    with pytest.raises(AppraisalError) as refusal:
        verified_manifest(wrapped, Endorsements(), at)
    assert refusal.value.reason is Reason.DIGEST
    inside = opened + b">" + forged + text + b"</SoftwareIdentity>"
    with pytest.raises(AppraisalError):
        verified_manifest(inside, Endorsements(), at)


def test_comments_do_not_hide_content():
    """Comments are not signed; values are read as if there were none."""
    text = data(VBIOS)
    marked = text.replace(b"<ns0:Payload", b"<!-- x --><ns0:Payload", 1)
    at = datetime(2024, 6, 1, tzinfo=UTC)
    assert verified_manifest(marked, Endorsements(), at) == verified_manifest(
        text, Endorsements(), at
    )


@pytest.mark.parametrize(
    "text",
    [
        b'<!DOCTYPE a [<!ENTITY b "cc">]><SoftwareIdentity>&b;</SoftwareIdentity>',
        b"<SoftwareIdentity/>",
        b"<a>" * 10_000,
        b" " * (1 << 20) + b"<a/>",
        '<?xml version="1.0" encoding="utf-16"?><a/>'.encode("utf-16"),
        b"",
    ],
)
def test_no_manifest(text):
    with pytest.raises(DecodeError):
        parse_manifest(text)


@pytest.mark.parametrize("name", ["hopper", "switch"])
def test_tokens_of_the_service_parse(name):
    token = service.parse_token(data(f"nras-token-{name}.json"))
    assert token.devices == json.loads(data(f"nras-token-{name}-decoded.json"))
    assert token.claims["x-nvidia-overall-att-result"] is True


def test_damaged_tokens_do_not_parse():
    (_, whole), devices = json.loads(data("nras-token-hopper.json"))
    (name, part) = next(iter(devices.items()))
    header, payload, signature = part.split(".")
    other = base64.urlsafe_b64encode(b'{"secboot": false}').decode().rstrip("=")
    for wrong in (
        [["JWT", whole], {}],
        [["JWT", whole], {name: f"{header}.{other}.{signature}"}],
        [["JWT", whole], {name: payload}],
        [["JWT", whole], {name: 7}],
        [["EAT", whole], devices],
        [["JWT", "a.b.c"], devices],
        [whole, devices],
        {},
        7,
    ):
        with pytest.raises(DecodeError):
            service.parse_token(json.dumps(wrong).encode())
    for chain in (b"{}", b'{"x5c": []}', b'{"x5c": ["AAAA"]}', b'{"x5c": [1]}', b"["):
        with pytest.raises(DecodeError):
            service.parse_chain(chain)


def test_report_fields_that_do_not_fit():
    good = bytes.fromhex(data(REPORT).decode())
    length = 37 + 5
    for at, value in ((0, 0x12), (38, 0x61), (41, 63), (length, good[length] ^ 1), (46, 2)):
        with pytest.raises(DecodeError):
            parse_report(good[:at] + bytes([value]) + good[at + 1 :])
