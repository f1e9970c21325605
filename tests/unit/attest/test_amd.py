"""SEV-SNP evidence: every recorded case, and what is refused under which name."""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import replace
from datetime import UTC, datetime

import attest_rig
import pytest
from amd_rig import AT, MadeChip, endorsements, judge
from attest_rig import data

from veilrun.attest.amd import authenticate, evidence, processors
from veilrun.attest.checks import CheckLog
from veilrun.attest.claims import Claims, Kind
from veilrun.attest.endorsements import Endorsements
from veilrun.attest.reasons import AppraisalError, Reason
from veilrun.errors import DecodeError

CASES = {case["id"]: case for case in attest_rig.vectors("sev-snp")}
MILAN = ["sev-snp/amd-milan-ask.der", "sev-snp/amd-milan-ark.der"]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_recorded_case(case):
    if case["expect"] == "reject" and case["reason"] != "debug":
        with pytest.raises(AppraisalError) as refusal:
            judge(case)
        assert refusal.value.reason == case["reason"]
        return
    claims, facts = judge(case), case.get("facts", {})
    report = evidence.parse(data(case["evidence"])).report
    assert claims.debug is (case["id"] in ("snp-milan-v2-debug", "snp-milan-v2-debug-allowed"))
    if facts:
        assert report.version == facts["report_version"]
        assert report.reported_tcb.hex() == facts["reported_tcb"]
        assert report.signer == facts["signing_key"]
        assert f"0x{claims.measurements['policy']}" == facts["policy"]
        assert claims.measurements["vmpl"] == str(facts["vmpl"])
        assert claims.measurements["measurement"] == facts["measurement"]
        assert claims.measurements["host_data"] == facts["host_data"]
        assert claims.report_data == bytes.fromhex(facts["report_data"])
        assert claims.identity.get("chip_id", bytes(64).hex()) == facts["chip_id"]


def test_cases_are_there():
    attest_rig.path("vectors.json")
    assert len(CASES) == 16


def test_the_claims_of_a_guest():
    log = CheckLog("amd")
    claims = judge(CASES["snp-milan-v3-dstack"], log) if CASES else pytest.skip(attest_rig.ABSENT)
    assert claims.kind is Kind.AMD_SEV_SNP
    assert claims.versions == {
        "bootloader": "4",
        "tee": "0",
        "snp": "23",
        "microcode": "213",
        "guest_svn": "0",
        "firmware": "1.55.29",
    }
    assert claims.identity["product"] == "Milan"
    assert claims.identity["chip_id"].startswith("38d174589d2dff97")
    assert claims.debug is False
    assert claims.tcb is None
    assert [(one.name, one.outcome) for one in log.checks] == [
        ("endorsement key", "passed"),
        ("report signature", "passed"),
        ("processor", "passed"),
        ("tcb of the endorsement key", "passed"),
        ("chip", "passed"),
        ("guest policy", "passed"),
        ("stated report data", "passed"),
    ]


def test_a_cloud_key_names_the_cloud():
    attest_rig.path("vectors.json")
    identity = judge(CASES["snp-milan-v3-vlek"]).identity
    assert identity["csp_id"] == "CN=cc-us-east-2.amazonaws.com"
    assert "chip_id" not in identity


def test_an_envelope_brings_its_own_certificates():
    at = datetime(2026, 6, 18, tzinfo=UTC)
    parsed = evidence.parse(data("sev-snp/snp-milan-v3-dstack-attestation.json"))
    known = endorsements(["sev-snp/amd-milan-ark.der"])
    assert authenticate.authenticate(parsed, known, at, CheckLog("amd")).debug is False
    with pytest.raises(AppraisalError) as refusal:
        bare = replace(parsed, carried=Endorsements())
        authenticate.authenticate(bare, known, at, CheckLog("amd"))
    assert refusal.value.reason is Reason.NO_ENDORSEMENT
    with pytest.raises(AppraisalError) as refusal:
        other = replace(parsed, stated=bytes(64))
        authenticate.authenticate(other, known, at, CheckLog("amd"))
    assert (refusal.value.reason, refusal.value.check) == (Reason.DIGEST, "stated report data")


def test_a_report_speaks_for_its_runtime_data_only():
    case = CASES.get("snp-genoa-v3-azure") or pytest.skip(attest_rig.ABSENT)
    parsed = evidence.parse(data(case["evidence"]))
    assert parsed.runtime is not None
    digest = hashlib.sha256(parsed.runtime.runtime_data).hexdigest()
    assert digest == case["facts"]["runtime_data_sha256"]
    other = replace(
        parsed, runtime=replace(parsed.runtime, runtime_data=parsed.runtime.runtime_data + b" ")
    )
    at = datetime.fromisoformat(case["at"])
    with pytest.raises(AppraisalError) as refusal:
        authenticate.authenticate(other, endorsements(case["uses"]), at, CheckLog("amd"))
    assert (refusal.value.reason, refusal.value.check) == (Reason.DIGEST, "runtime data")


def test_a_tdx_guests_hcl_report_is_not_ours():
    content = data("tpm/azure-tdx-hcl-report.bin")
    assert not evidence.recognise(content)
    with pytest.raises(DecodeError, match="intel-tdx"):
        evidence.parse(content)


def test_the_signer_is_found_among_many_certificates():
    uses = ["snp-milan-v2-debug-vcek.der", "snp-milan-v3-dstack-vcek.pem", "snp-genoa-v5-vcek.der"]
    many = [f"sev-snp/{one}" for one in (*uses, "snp-milan-v2-vcek.der")]
    parsed = evidence.parse(data("sev-snp/snp-milan-v2-report.bin"))
    known = endorsements([*many, *MILAN])
    assert authenticate.authenticate(parsed, known, AT, CheckLog("amd")).debug is False


def test_an_expired_revocation_list_is_named():
    case = CASES.get("snp-genoa-v3-azure") or pytest.skip(attest_rig.ABSENT)
    with pytest.raises(AppraisalError, match="revocation list") as refusal:
        judge(case | {"at": "2026-01-01T00:00:00+00:00"})
    assert refusal.value.reason is Reason.EXPIRED


def test_serial_number_zero_is_read_without_a_word():
    content = data("sev-snp/snp-milan-v2-report.bin")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        known = endorsements(["sev-snp/snp-milan-v2-vcek.der", *MILAN])
        authenticate.authenticate(evidence.parse(content), known, AT, CheckLog("amd"))


def made(
    monkeypatch: pytest.MonkeyPatch,
    chip: MadeChip,
    changes: dict[int, bytes] | None = None,
    known: Endorsements | None = None,
) -> Claims:
    monkeypatch.setattr(authenticate, "AMD", chip.pins)
    monkeypatch.setattr(processors, "AMD", chip.pins)
    parsed = evidence.parse(chip.report(changes))
    return authenticate.authenticate(parsed, known or chip.endorsements, AT, CheckLog("amd"))


def test_turin_has_its_own_layout(monkeypatch):
    claims = made(monkeypatch, MadeChip())
    assert claims.versions["fmc"] == "1"
    assert (claims.versions["snp"], claims.versions["microcode"]) == ("200", "90")
    assert claims.identity["product"] == "Turin"
    assert claims.identity["chip_id"].startswith("0102030405060708" + 4 * "00")


# What is made wrong -> how it is refused.
_TCB, _LEVEL = "tcb of the endorsement key", Reason.TCB_LEVEL
CHANGED_REPORTS = {
    "older firmware": ({0x183: b"\xc7"}, _LEVEL, _TCB),
    "newer firmware": ({0x183: b"\xc9"}, _LEVEL, _TCB),
    "unknown component": ({0x184: b"\1"}, _LEVEL, _TCB),
    "another chip": ({0x1A0: b"\7"}, Reason.CHAIN, "chip"),
    "a longer chip id": ({0x1A8: b"\1"}, Reason.CHAIN, "chip"),
    "a hidden chip id": ({0x1A0: bytes(64)}, Reason.CHAIN, "chip"),
    "another processor": ({0x188: b"\x19"}, Reason.CHAIN, "processor"),
    "an unknown model": ({0x189: b"\x50"}, Reason.CHAIN, "processor"),
    "bit 17 off": ({0x0A: b"\1"}, Reason.CONFIGURATION, "guest policy"),
    "a reserved bit": ({0x0B: b"\4"}, Reason.CONFIGURATION, "guest policy"),
    "a masked key": ({0x48: b"\2"}, Reason.SIGNATURE, "report signature"),
}


@pytest.mark.parametrize("name", CHANGED_REPORTS)
def test_a_signed_report_that_does_not_fit(monkeypatch, name):
    changes, reason, check = CHANGED_REPORTS[name]
    with pytest.raises(AppraisalError) as refusal:
        made(monkeypatch, MadeChip(), changes)
    assert (refusal.value.reason, refusal.value.check) == (reason, check)


WRONG_CHIPS = {
    "VCEK of the VLEKs' issuer": MadeChip(issuer_name="SEV-VLEK-Turin"),
    "issuer of another product": MadeChip(issuer_name="SEV-Milan"),
    "issuer is the root": MadeChip(issuer_name="ARK-Turin"),
    "no chip id": MadeChip(chip_id=None),
    "chip id of 16 bytes": MadeChip(chip_id=bytes(range(1, 17))),
    "VLEK of the VCEKs' issuer": MadeChip(signer="VLEK", cloud=b"\x16\x02CN", chip_id=None),
    "VLEK without a cloud": MadeChip(
        signer="VLEK", issuer_name="SEV-VLEK-Turin", cloud=None, chip_id=None
    ),
    "VLEK with a chip": MadeChip(signer="VLEK", issuer_name="SEV-VLEK-Turin", cloud=b"\x16\x02CN"),
    "VLEK with half a name": MadeChip(
        signer="VLEK", issuer_name="SEV-VLEK-Turin", cloud=b"\x16\x03CN", chip_id=None
    ),
}


@pytest.mark.parametrize("name", WRONG_CHIPS)
def test_a_genuine_key_that_does_not_fit(monkeypatch, name):
    with pytest.raises(AppraisalError) as refusal:
        made(monkeypatch, WRONG_CHIPS[name])
    assert refusal.value.reason is Reason.CHAIN


def test_a_cloud_key_that_fits(monkeypatch):
    chip = MadeChip(signer="VLEK", issuer_name="SEV-VLEK-Turin", cloud=b"\x16\x02CN", chip_id=None)
    assert made(monkeypatch, chip).identity["csp_id"] == "CN"


def test_a_revoked_issuer(monkeypatch):
    chip = MadeChip()
    with pytest.raises(AppraisalError) as refusal:
        made(monkeypatch, chip, known=chip.revoking())
    assert refusal.value.reason is Reason.REVOKED


def test_debug_is_claimed(monkeypatch):
    assert made(monkeypatch, MadeChip(), {0x0A: b"\x0b"}).debug is True


@pytest.mark.parametrize(
    "changes",
    [
        {0x00: b"\4"},
        {0x34: b"\2"},
        {0x48: b"\x1c"},
        {0x48: b"\x20"},
        {0x4C: b"\1"},
        {0x190: b"\1"},
        {0x208: b"\1"},
    ],
)
def test_what_no_report_has(changes):
    with pytest.raises(DecodeError):
        evidence.parse(MadeChip().report(changes))
