"""Intel SGX and TDX: recorded quotes, and quotes like them under a root of our own."""

from __future__ import annotations

import copy
import json
from datetime import UTC, datetime, timedelta

import intel_rig
import pytest
from intel_rig import AT, Made, data, endorsements, examine
from nvidia_rig import FOLDER, time

from veilrun.attest.claims import Kind
from veilrun.attest.endorsements import Endorsements
from veilrun.attest.files import read
from veilrun.attest.intel import evidence
from veilrun.attest.intel.quotes import parse_quote
from veilrun.attest.policy import AllOf, Demands
from veilrun.attest.reasons import AppraisalError, Reason
from veilrun.attest.rules import AcceptedTcb, Freshness, Measurements, NoDebug
from veilrun.attest.verdict import appraise, require
from veilrun.errors import DecodeError

SIGNATURES = [
    "pck certificate",
    "report of the quoting enclave",
    "quoting enclave",
    "quoting key",
    "quote signature",
]
NAMES = {
    "mr_enclave": "mr_enclave",
    "mr_signer": "mr_signer",
    "attributes": "attributes",
    "td_attributes": "td_attributes",
    "mr_td": "mrtd",
}


def cases():
    if not FOLDER.is_dir():
        return []
    recorded = json.loads((FOLDER / "vectors.json").read_text("utf-8"))["vectors"]
    mine = [one for one in recorded if one["kind"] == "sgx-tdx"]
    return [one for one in mine if "report_data" in one.get("facts", {})]


@pytest.mark.parametrize("case", cases(), ids=lambda case: case["id"])
def test_claims_are_what_was_recorded(case):
    facts, content = case["facts"], data(case["evidence"].removeprefix("sgx-tdx/"))
    at_hand = endorsements(*(one.removeprefix("sgx-tdx/") for one in case["uses"]))
    claims, log = examine(content, at_hand, time(case["at"]))
    for name, ours in NAMES.items():
        assert name not in facts or claims.measurements[ours] == facts[name]
    for at, value in enumerate(facts.get("rtmr", [])):
        assert claims.measurements[f"rtmr{at}"] == value
    assert claims.report_data.hex() == facts["report_data"]
    assert len(evidence.parse(content).quote.data) == facts["quote_bytes_used"]
    assert [one.name for one in log.checks][:5] == SIGNATURES
    if "tcb_status" in facts:
        assert claims.tcb.status == facts["tcb_status"]
        assert list(claims.tcb.advisories) == facts["advisory_ids"]
        assert claims.identity["fmspc"] == facts["fmspc"].lower()
    else:
        assert claims.tcb is None
        skipped = [one for one in log.checks if one.outcome == "skipped"]
        assert "tcb level" in [one.name for one in skipped]


@pytest.fixture
def tdx(monkeypatch):
    made = Made()
    made.patch(monkeypatch)
    return made


@pytest.fixture
def sgx(monkeypatch):
    made = Made(intel_rig.SGX_COLLATERAL, parse_quote(data(intel_rig.SGX)))
    made.patch(monkeypatch)
    return made


def put(at, value):
    return lambda body: body.__setitem__(at, value)


def refusal(content, at_hand, at=AT):
    with pytest.raises(AppraisalError) as caught:
        examine(content, at_hand, at)
    return caught.value.reason, caught.value.check


def test_a_platform_of_our_own(tdx):
    claims, log = examine(tdx.made(), tdx.endorsements())
    assert claims.tcb.status == "UpToDate"
    assert claims.versions == {"tcb_evaluation": "17"}
    assert [one.name for one in log.checks if one.outcome == "passed"] == [
        *SIGNATURES,
        "tcb info",
        "identity of the quoting enclave",
        "tcb level",
    ]
    assert examine(tdx.made(5), tdx.endorsements())[0].measurements == claims.measurements


def test_our_root_is_not_intels():
    made = Made()
    assert refusal(made.made(), made.endorsements()) == (Reason.CHAIN, "pck certificate")


@pytest.mark.parametrize(
    ("where", "value", "reason"),
    [
        (120, 1, Reason.DEBUG),
        (120, 0x80, Reason.CONFIGURATION),  # profiling: it can be looked into as well
        (123, 0, Reason.CONFIGURATION),  # SEPT_VE_DISABLE
        (127, 1, Reason.CONFIGURATION),  # reserved
    ],
)
def test_attributes_of_a_domain(tdx, where, value, reason):
    quote = tdx.made(report=put(where, value))
    assert refusal(quote, tdx.endorsements()) == (reason, "tcb level")
    claims, _ = examine(quote, Endorsements())
    assert claims.debug is (where == 120)


def test_debug_of_an_enclave(sgx):
    quote = sgx.made(3, report=put(48, 7))
    assert refusal(quote, sgx.endorsements()) == (Reason.DEBUG, "tcb level")
    assert examine(quote, Endorsements())[0].debug


@pytest.mark.parametrize(
    ("where", "value", "reason", "check"),
    [
        (128, 0, Reason.MEASUREMENT, "quoting enclave"),  # MRSIGNER
        (256, 1, Reason.MEASUREMENT, "quoting enclave"),  # product
        (48, 0x13, Reason.MEASUREMENT, "quoting enclave"),  # debug
        (320, 0, Reason.SIGNATURE, "quoting key"),
        (383, 1, Reason.SIGNATURE, "quoting key"),
        (258, 1, Reason.TCB_LEVEL, "tcb level"),  # version, under all in its identity
        (55, 0xFF, Reason.MEASUREMENT, "tcb level"),  # attributes
    ],
)
def test_an_enclave_that_the_pck_signs_is_not_always_intels(tdx, where, value, reason, check):
    quote = tdx.made(enclave=put(where, value))
    assert refusal(quote, tdx.endorsements()) == (reason, check)


def newer(document, **of_ours):
    """A level before the one that the platform reaches."""
    ours = document["tcbLevels"][0]
    level = copy.deepcopy(ours)
    level["tcb"]["pcesvn" if "pcesvn" in ours["tcb"] else "isvsvn"] = 200
    level["tcbDate"] = "2025-01-02T00:00:00Z"
    document["tcbLevels"].insert(0, level)
    ours.update({"tcbStatus": "OutOfDate", "advisoryIDs": ["INTEL-SA-00001"]} | of_ours)


def newer_module(document):
    for module in document["tdxModuleIdentities"]:
        newer(module)


@pytest.mark.parametrize(
    "change", [{"tcb_info": newer}, {"identity": newer}, {"tcb_info": newer_module}]
)
def test_out_of_date_says_since_when(tdx, change):
    at_hand = tdx.endorsements(**change)
    claims, _ = examine(tdx.made(), at_hand)
    assert claims.tcb.status == "OutOfDate"
    assert claims.tcb.dated == datetime(2025, 1, 2, tzinfo=UTC)
    bundle = intel_rig.bundle_of(tdx.made(), at_hand)
    verdict = appraise(bundle, AllOf((AcceptedTcb(),)), Demands(), AT)
    (check,) = [one for one in verdict.checks if one.name == "tcb"]
    assert check.reason is Reason.TCB_LEVEL
    assert "since 2025-01-02 (169 days)" in check.detail


@pytest.mark.parametrize(
    ("kind", "which"),
    [("sgxtcbcomponents", at) for at in range(16)]
    # The first two are the module's, which has levels of its own.
    + [("tdxtcbcomponents", at) for at in range(2, 16)],
)
def test_every_component_counts(tdx, kind, which):
    def over(document):
        document["tcbLevels"] = document["tcbLevels"][:1]
        document["tcbLevels"][0]["tcb"][kind][which]["svn"] = 255

    assert refusal(tdx.made(), tdx.endorsements(over)) == (Reason.TCB_LEVEL, "tcb level")


def test_revoked(tdx, monkeypatch):
    revoked = tdx.endorsements(lambda one: newer(one, tcbStatus="Revoked"))
    assert refusal(tdx.made(), revoked) == (Reason.REVOKED, "tcb level")
    for which, check in (
        (intel_rig.REVOKED_PCK, "pck certificate"),
        (intel_rig.REVOKED_PLATFORM, "pck certificate"),
        (intel_rig.REVOKED_SIGNER, "tcb info"),
    ):
        made = Made(revoked=which)
        made.patch(monkeypatch)
        assert refusal(made.made(), made.endorsements()) == (Reason.REVOKED, check)


@pytest.mark.parametrize("change", [{"issueDate": AT + timedelta(hours=1)}, {"nextUpdate": AT}])
@pytest.mark.parametrize("document", ["tcb_info", "identity"])
def test_collateral_is_current(tdx, change, document):
    ((name, when),) = change.items()

    def move(body):
        body[name] = when.strftime("%Y-%m-%dT%H:%M:%SZ")

    at = AT + timedelta(minutes=5)
    reason = Reason.NOT_YET_VALID if name == "issueDate" else Reason.EXPIRED
    check = "tcb info" if document == "tcb_info" else "identity of the quoting enclave"
    assert refusal(tdx.made(), tdx.endorsements(**{document: move}), at) == (reason, check)


def test_lists_are_current(tdx):
    late = AT + timedelta(days=2)
    assert refusal(tdx.made(), tdx.endorsements(), late) == (Reason.EXPIRED, "pck certificate")


@pytest.mark.parametrize("names", [{2: "Intel SGX TCB Signing"}, {1: "Intel SGX TCB Signing"}])
def test_only_a_pck_signs_quoting_enclaves(monkeypatch, names):
    other = Made(names=names)
    other.patch(monkeypatch)
    assert refusal(other.made(), other.endorsements()) == (Reason.CHAIN, "pck certificate")


@pytest.mark.parametrize(
    ("where", "check"),
    [
        (100, "quote signature"),
        (640, "quote signature"),
        (700, "quoting key"),
        (800, "report of the quoting enclave"),
        (1170, "report of the quoting enclave"),
    ],
)
@pytest.mark.parametrize("collateral", [(), (intel_rig.TDX_COLLATERAL,)])
def test_each_signature_by_its_name(where, check, collateral):
    content = bytearray(data(intel_rig.TDX))
    content[where] ^= 1
    found = refusal(bytes(content), endorsements(*collateral))
    assert found == (Reason.SIGNATURE, check)


def test_altered_collateral_is_not_signed(tdx):
    body = json.loads(tdx.endorsements().collateral[0])
    for name, check in (("tcb_info", "tcb info"), ("qe_identity", "identity of the quo")):
        altered = body | {name: body[name].replace("2024-03-13", "2024-03-14")}
        at_hand = Endorsements(collateral=(json.dumps(altered).encode(),))
        reason, found = refusal(tdx.made(), at_hand)
        assert reason is Reason.SIGNATURE
        assert found.startswith(check)


def test_the_newest_collateral_counts(tdx):
    at_hand = tdx.endorsements(newer) + tdx.endorsements(
        lambda one: one.update(issueDate="2025-06-20T00:00:00Z")
    )
    of_tomorrow = at_hand + tdx.endorsements(
        lambda one: newer(one) or one.update(issueDate="2025-06-21T00:00:00Z")
    )
    for collateral in (at_hand.collateral, at_hand.collateral[::-1], of_tomorrow.collateral):
        claims, _ = examine(tdx.made(), Endorsements(collateral=collateral))
        assert claims.tcb.status == "UpToDate"


@pytest.mark.parametrize("missing", ["tcbinfo-tdx-90c06f000000.json", "td-qe-identity.json"])
def test_without_all_of_it_there_is_no_grade(missing):
    parts = ["td-qe-identity.json", "tcbinfo-tdx-90c06f000000.json", "tcb-signing-chain.pem"]
    parts += ["pck-crl-platform.der", "root-ca-crl.der"]
    names = [f"pcs-2026-03-{one}" for one in parts if one != missing]
    quote, at = data("tdx-v5-quote-90c06f-uptodate.bin"), datetime(2026, 3, 18, tzinfo=UTC)
    claims, log = examine(quote, endorsements(*names), at)
    assert claims.tcb is None
    (skipped,) = [one for one in log.checks if one.name == "tcb level"]
    assert ("identity" if "identity" in missing else "TCB info") in skipped.detail
    bundle = intel_rig.bundle_of(quote, endorsements(*names))
    with pytest.raises(AppraisalError) as caught:
        require(appraise(bundle, AllOf((AcceptedTcb(),)), Demands(), at))
    assert caught.value.reason is Reason.TCB_LEVEL


def test_without_who_signed_it():
    parts = ["td-qe-identity.json", "tcbinfo-tdx-90c06f000000.json", "pck-crl-platform.der"]
    at_hand = endorsements(*(f"pcs-2026-03-{one}" for one in [*parts, "root-ca-crl.der"]))
    quote, at = data("tdx-v5-quote-90c06f-uptodate.bin"), datetime(2026, 3, 18, tzinfo=UTC)
    assert refusal(quote, at_hand, at) == (Reason.NO_ENDORSEMENT, "tcb info")


def test_other_platforms_collateral_grades_nothing():
    claims, _ = examine(data(intel_rig.TDX), endorsements(intel_rig.SGX_COLLATERAL))
    assert claims.tcb is None


@pytest.mark.parametrize("version", [4, 5])
def test_sgx_quotes_that_the_library_does_not_grade(sgx, version):
    claims, log = examine(sgx.made(version), sgx.endorsements())
    assert claims.kind is Kind.INTEL_SGX
    assert claims.tcb is None
    assert [(one.name, one.outcome) for one in log.checks][-1] == ("tcb level", "skipped")
    assert examine(sgx.made(3), sgx.endorsements())[0].measurements == claims.measurements


def test_what_policies_compare():
    bundle = intel_rig.bundle_of(data(intel_rig.SGX), endorsements(intel_rig.SGX_COLLATERAL))
    status = frozenset({"ConfigurationAndSWHardeningNeeded"})
    enclave = bundle.evidence[0].report.quote.report.mr_enclave.hex()
    known = Measurements(Kind.INTEL_SGX, {"mr_enclave": frozenset({enclave})})
    policy = AllOf((AcceptedTcb({Kind.INTEL_SGX: status}), NoDebug(), Freshness(), known))
    require(appraise(bundle, policy, Demands(nonce=b"Hello, world!"), AT))
    for rules, demands, reason in (
        (policy, Demands(nonce=b"Hello, there!"), Reason.NONCE),
        (AllOf((AcceptedTcb(),)), Demands(), Reason.TCB_LEVEL),
        (
            AllOf((Measurements(Kind.INTEL_SGX, {"mr_enclave": frozenset({"00"})}),)),
            Demands(),
            Reason.MEASUREMENT,
        ),
    ):
        with pytest.raises(AppraisalError) as caught:
            require(appraise(bundle, rules, demands, AT))
        assert caught.value.reason is reason


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (put(0, 6), "version 6"),
        (put(2, 3), "type of key"),
        (put(4, 0x82), "TEE 0x82"),
        (put(12, 0), "vendor"),
        (put(632, 0), "signature data"),
        (lambda body: body.__delitem__(slice(4000, None)), "needs"),
    ],
)
def test_malformed_quotes(change, what):
    content = bytearray(data(intel_rig.TDX))
    change(content)
    with pytest.raises(DecodeError, match=what):
        evidence.parse(bytes(content))


def test_files_of_every_form():
    quote = data(intel_rig.TDX)
    for content in (quote, quote.hex().encode(), b"\n" + quote.hex().upper().encode() + b"\n"):
        (found,) = read(content).evidence
        assert found.kind is Kind.INTEL_TDX
        assert found.report.quote.data == quote[:4936]
    with pytest.raises(DecodeError):
        evidence.parse(bytes(1 << 17))


def test_collateral_is_bounded():
    one = data(intel_rig.TDX_COLLATERAL)
    quote = data(intel_rig.TDX)
    assert examine(quote, Endorsements(collateral=(one,) * 64))[0].tcb is not None
    with pytest.raises(DecodeError, match="64 at most"):
        examine(quote, Endorsements(collateral=(one,) * 65))
    with pytest.raises(DecodeError, match="over 1048576"):
        examine(quote, Endorsements(collateral=(one + b" " * (1 << 20),)))
    body = json.loads(one)
    body["pck_crl_issuer_chain"] *= 100
    examine(quote, Endorsements(collateral=(json.dumps(body).encode(),)))
    body["pck_crl_issuer_chain"] *= 2
    with pytest.raises(DecodeError, match="256 at most"):
        examine(quote, Endorsements(collateral=(json.dumps(body).encode(),)))
