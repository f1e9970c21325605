"""Rules, one by one, on claims that we make."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from veilrun.attest.binding import Binding, gpu_digest
from veilrun.attest.checks import Check
from veilrun.attest.claims import Claims, Kind, Tcb
from veilrun.attest.machine_rules import BoundTogether, BoundToTls, BoundToWeights, Required
from veilrun.attest.policy import AllOf, Demands, Machine, Piece, Rule
from veilrun.attest.reasons import Reason
from veilrun.attest.rules import (
    AcceptedTcb,
    AttestationKeys,
    Freshness,
    Measurements,
    MinimumVersion,
    NoDebug,
)
from veilrun.errors import UsageError

AT = datetime(2025, 6, 20, tzinfo=UTC)
NONCE, TLS, WEIGHTS = b"n" * 32, b"t" * 32, b"w" * 32
BINDING = Binding(NONCE, TLS, WEIGHTS)
NOTHING, DEMANDS = Demands(), Demands(NONCE, TLS, WEIGHTS)
TDX = Claims(
    Kind.INTEL_TDX,
    measurements={"mrtd": "aa", "rtmr0": "bb"},
    report_data=BINDING.report_data(),
    debug=False,
    tcb=Tcb("UpToDate"),
)
GPU = Claims(
    Kind.NVIDIA_GPU,
    versions={"driver": "570.86.10", "vbios": "96.00.A5.00.01"},
    identity={"chip_id": "1"},
    nonce=NONCE,
    tcb=Tcb("success"),
)
TPM = Claims(Kind.TPM, nonce=BINDING.report_data()[:32], identity={"attestation_key": "ab"})


def tried(rule: Rule, *claims: Claims, demands: Demands = NOTHING, **more: object) -> list[Check]:
    pieces = [Piece(str(one.kind), one, f"{at}".encode()) for at, one in enumerate(claims)]
    return list(rule.checks(Machine(pieces, demands, AT, **more)))


def refusals(checks: Iterable[Check]) -> list[Reason | None]:
    return [one.reason for one in checks if one.outcome == "failed"]


def test_a_policy_has_rules():
    with pytest.raises(UsageError):
        AllOf(())
    both = AllOf((AllOf((NoDebug(),)), AcceptedTcb()))
    assert [one.name for one in tried(both, TDX)] == ["debug", "tcb"]
    bad = replace(TDX, debug=True, tcb=None)
    assert refusals(tried(both, bad)) == [Reason.DEBUG, Reason.TCB_LEVEL]


@pytest.mark.parametrize("size", [0, 7, 65])
def test_a_nonce_that_is_no_challenge(size: int):
    with pytest.raises(UsageError):
        Demands(nonce=bytes(size))
    with pytest.raises(UsageError):
        Demands(tls_key_sha256=bytes(31))
    with pytest.raises(UsageError):
        Demands(weights_root=b"")


@pytest.mark.parametrize(
    ("claims", "good"),
    [
        (TDX, True),
        (replace(TDX, tcb=Tcb("OutOfDate")), False),
        (replace(TDX, tcb=None), False),
        (GPU, True),
        (replace(GPU, tcb=Tcb("not-run")), False),
        (replace(GPU, tcb=None), False),
        (TPM, True),
        (replace(TPM, tcb=Tcb("a grade nobody knows")), False),
        (replace(TPM, nested=(replace(TDX, tcb=None),)), False),
    ],
)
def test_only_the_best_grade_by_default(claims: Claims, good: bool):
    assert refusals(tried(AcceptedTcb(), claims)) == ([] if good else [Reason.TCB_LEVEL])


def test_a_grade_says_by_how_much():
    tcb = Tcb("OutOfDate", ("INTEL-SA-00837",), datetime(2024, 3, 13, tzinfo=UTC))
    (check,) = tried(AcceptedTcb(), replace(TDX, tcb=tcb))
    assert check.detail == (
        "OutOfDate since 2024-03-13 (464 days), open: INTEL-SA-00837; the policy accepts UpToDate"
    )
    accepting = AcceptedTcb({Kind.INTEL_TDX: frozenset({"OutOfDate", "unknown"})})
    assert not refusals(tried(accepting, replace(TDX, tcb=tcb)))
    assert not refusals(tried(accepting, replace(TDX, tcb=None)))
    assert refusals(tried(accepting, TDX)) == [Reason.TCB_LEVEL]


def test_debug():
    assert not refusals(tried(NoDebug(), TDX, GPU, TPM))
    for claims in (
        replace(TDX, debug=True),
        replace(TDX, debug=None),
        replace(GPU, debug=True),
        replace(TPM, nested=(replace(TDX, debug=True),)),
    ):
        assert refusals(tried(NoDebug(), claims)) == [Reason.DEBUG]


@pytest.mark.parametrize(
    "claims",
    [
        GPU,
        replace(TDX, report_data=NONCE + bytes(32)),
        Claims(Kind.AWS_NITRO, nonce=NONCE),
        replace(TDX, report_data=BINDING.report_data()),
        TPM,
        replace(TPM, nonce=NONCE, nested=(replace(TDX, report_data=bytes(64)),)),
    ],
)
def test_a_nonce_that_is_answered(claims: Claims):
    assert not refusals(tried(Freshness(), claims, demands=DEMANDS, binding=BINDING))
    wrong = Demands(nonce=b"x" * 32)
    assert refusals(tried(Freshness(), claims, demands=wrong, binding=BINDING)) == [Reason.NONCE]


@pytest.mark.parametrize(
    "claims",
    [
        replace(TDX, report_data=NONCE + bytes(31) + b"\1"),
        replace(TDX, report_data=None),
        replace(TDX, report_data=b""),
        replace(GPU, nonce=None),
        replace(GPU, nonce=NONCE + b"\0"),
        replace(TDX, report_data=replace(BINDING, weights_root=bytes(32)).report_data()),
    ],
)
def test_a_nonce_that_is_not(claims: Claims):
    checks = tried(Freshness(), claims, demands=DEMANDS, binding=BINDING)
    assert refusals(checks) == [Reason.NONCE]


def test_a_binding_of_another_time():
    old = replace(BINDING, nonce=b"o" * 32)
    stale = replace(TDX, report_data=old.report_data())
    (check,) = tried(Freshness(), stale, demands=DEMANDS, binding=old)
    assert check.reason is Reason.NONCE and (b"o" * 32).hex() in check.detail


def test_a_nonce_that_nobody_asked_for():
    assert refusals(tried(Freshness(), TDX)) == [Reason.NONCE]
    assert tried(Freshness(needs_nonce=False), TDX) == []


@pytest.mark.parametrize(
    ("age_s", "good"), [(0, True), (300, True), (301, False), (-59, True), (-61, False)]
)
def test_age(age_s: int, good: bool):
    claims = Claims(Kind.AWS_NITRO, made_at=AT - timedelta(seconds=age_s))
    checks = tried(Freshness(needs_nonce=False, max_age_s=300), claims)
    assert refusals(checks) == ([] if good else [Reason.STALE])


def test_evidence_without_a_clock_is_as_fresh_as_its_nonce():
    rule = Freshness(needs_nonce=False, max_age_s=300)
    assert refusals(tried(rule, TDX)) == [Reason.STALE]
    assert not refusals(tried(rule, TDX, demands=DEMANDS, binding=BINDING))


def test_measurements():
    rule = Measurements(Kind.INTEL_TDX, {"mrtd": frozenset({"aa", "cc"})})
    assert not refusals(tried(rule, TDX, GPU))
    for measured in ({"mrtd": "bb"}, {}):
        (check,) = tried(rule, replace(TDX, measurements=measured))
        assert (check.reason, check.name) == (Reason.MEASUREMENT, "measurement mrtd")
    assert refusals(tried(rule, GPU)) == [Reason.MISSING]  # else leaving it out would do
    two = (TDX, replace(TDX, measurements={"mrtd": "bb"}))
    assert refusals(tried(rule, *two)) == [Reason.MEASUREMENT]


@pytest.mark.parametrize(
    ("name", "found", "least", "good"),
    [
        ("driver", "570.86.10", "570.86.10", True),
        ("driver", "570.86.10", "570.86.9", True),
        ("driver", "570.86.9", "570.86.10", False),
        ("driver", "590.12", "590.12.0", True),
        ("driver", "590.12", "590.12.1", False),
        ("driver", "1000.1", "570.86.10", True),
        ("driver", "", "1", False),
        ("driver", "5a0.1", "1", False),
        ("vbios", "96.00.A5.00.01", "96.00.99.00.01", True),
        ("vbios", "96.00.0A.00.01", "96.00.10.00.01", False),
        ("vbios", "96.00.a5.00.01", "96.00.A5.00.02", False),
    ],
)
def test_versions_are_numbers(name: str, found: str, least: str, good: bool):
    rule = MinimumVersion(Kind.NVIDIA_GPU, name, least)
    checks = tried(rule, replace(GPU, versions={name: found}))
    assert refusals(checks) == ([] if good else [Reason.VERSION])


def test_a_version_that_is_not_there():
    rule = MinimumVersion(Kind.NVIDIA_GPU, "driver", "1")
    assert refusals(tried(rule, replace(GPU, versions={}))) == [Reason.VERSION]
    assert refusals(tried(rule, TDX)) == [Reason.MISSING]


def test_attestation_keys():
    vouched = replace(TPM, identity={"attestation_key": "ab", "vouched_by": "certificate"})
    assert refusals(tried(AttestationKeys(), TPM)) == [Reason.CHAIN]
    assert not refusals(tried(AttestationKeys(), vouched, TDX))
    assert not refusals(tried(AttestationKeys(frozenset({"ab"})), TPM, vouched))
    assert refusals(tried(AttestationKeys(frozenset({"cd"})), TPM, vouched)) == [Reason.CHAIN] * 2
    assert refusals(tried(AttestationKeys(), replace(TPM, identity={}))) == [Reason.CHAIN]


def test_one_device_twice_is_one():
    eight = [replace(GPU, identity={"chip_id": str(at)}) for at in range(8)]
    assert not refusals(tried(Required({Kind.NVIDIA_GPU: 8}), *eight))
    eight[3] = replace(eight[2], identity={"chip_id": "2", "leaf": "other"})
    assert refusals(tried(Required({Kind.NVIDIA_GPU: 8}), *eight)) == [Reason.MISSING]
    assert refusals(tried(Required({Kind.INTEL_TDX: 1}), *eight)) == [Reason.MISSING]
    assert refusals(tried(Required({Kind.INTEL_TDX: 2}), TDX, TDX)) == [Reason.MISSING]
    assert not refusals(tried(Required({Kind.INTEL_TDX: 1}), replace(TPM, nested=(TDX,))))


BOUND = [
    (BoundToTls(), "tls_key_sha256", Reason.BINDING_TLS),
    (BoundToWeights(), "weights_root", Reason.BINDING_WEIGHTS),
]


@pytest.mark.parametrize(("rule", "name", "reason"), BOUND)
def test_bindings(rule: Rule, name: str, reason: Reason):
    assert not refusals(tried(rule, TDX, TPM, demands=DEMANDS, binding=BINDING))
    other = replace(DEMANDS, **{name: b"o" * 32})
    checks = tried(rule, TDX, demands=other, binding=BINDING)
    assert refusals(checks) == [reason] and (b"o" * 32).hex() in checks[0].detail
    undemanded = replace(DEMANDS, **{name: None})
    assert refusals(tried(rule, TDX, demands=undemanded, binding=BINDING)) == [reason]


@pytest.mark.parametrize(("rule", "name", "reason"), BOUND)
def test_what_is_stated_counts_for_nothing_unless_it_is_hashed(rule, name: str, reason: Reason):
    claimed = replace(BINDING, **{name: b"o" * 32})
    demands = replace(DEMANDS, **{name: b"o" * 32})
    assert refusals(tried(rule, TDX, demands=demands, binding=claimed)) == [reason]
    assert refusals(tried(rule, TDX, demands=DEMANDS, binding=None)) == [reason]  # not ours
    foreign = replace(TDX, report_data=bytes(64))
    assert refusals(tried(rule, TDX, foreign, demands=DEMANDS, binding=BINDING)) == [reason]
    assert refusals(tried(rule, GPU, demands=DEMANDS, binding=BINDING)) == [reason]  # none to bind


def test_gpus_of_another_machine():
    ours = replace(BINDING, gpu_evidence_sha256=gpu_digest([b"1"]))
    host = replace(TDX, report_data=ours.report_data())
    assert not refusals(tried(BoundTogether(), host, GPU, binding=ours))
    theirs = Machine([Piece("cpu", host), Piece("gpu", GPU, b"theirs")], DEMANDS, AT, ours)
    assert refusals(BoundTogether().checks(theirs)) == [Reason.BINDING_GPU]
    assert refusals(tried(BoundTogether(), TDX, GPU, binding=BINDING)) == [Reason.BINDING_GPU]
    assert refusals(tried(BoundTogether(), TDX, GPU)) == [Reason.BINDING_GPU]
    assert refusals(tried(BoundTogether(), TDX, GPU, binding=ours)) == [Reason.BINDING_GPU]
    assert tried(BoundTogether(), GPU) == tried(BoundTogether(), TDX) == []
