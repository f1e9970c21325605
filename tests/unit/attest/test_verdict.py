"""Verdicts on real evidence: what fails, under which name, and the document that says so."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime

import attest_rig
import nvidia_rig
import pytest
from attest_rig import AT

from veilrun.attest import verdict as verdicts
from veilrun.attest.binding import Binding, gpu_digest
from veilrun.attest.bundle import Bundle
from veilrun.attest.checks import CheckLog
from veilrun.attest.claims import Claims, Kind, Tcb
from veilrun.attest.ear import encode_ear
from veilrun.attest.endorsements import Endorsements
from veilrun.attest.kinds import Evidence
from veilrun.attest.machine_rules import BoundTogether, Required
from veilrun.attest.policy import AllOf, Demands
from veilrun.attest.policy_file import parse_policy
from veilrun.attest.reasons import AppraisalError, Reason
from veilrun.attest.rules import AcceptedTcb, Freshness, Measurements, NoDebug
from veilrun.attest.verdict import Verdict, appraise, require
from veilrun.errors import UsageError

EIGHT = "nvidia/hopper-evidence-590-12-eight-gpus.json"
EIGHT_NONCE = bytes.fromhex("4760e30534a0621357d458b1a7936551b5dc4cd1e69718adf7ed9fb0252a537e")
SWITCH = ["nvidia/ls10-switch-report.txt", "nvidia/ls10-switch-chain.pem"]
SWITCH_MANIFEST = "nvidia/rim-switch-ls10-96-10-55.xml"
SWITCH_NONCE = bytes.fromhex("931d8dd0add203ac3d8b4fbde75e115278eefcdceac5b87671a748f32364dfcb")
MANIFESTS_AT = nvidia_rig.time("2026-08-01T00:00:00Z")
LENIENT = parse_policy('[tcb]\nnvidia-gpu="not-run"\nnvidia-switch="not-run"')
TDX = Claims(Kind.INTEL_TDX, debug=False, tcb=Tcb("UpToDate"), report_data=bytes(64))


def refusal(verdict: Verdict) -> AppraisalError:
    assert not verdict.accepted
    with pytest.raises(AppraisalError) as raised:
        require(verdict)
    return raised.value


def made_up(monkeypatch: pytest.MonkeyPatch, *claims: Claims) -> Bundle:
    """Evidence that proves what we like, to try what is made of it."""

    def authenticate(one: Evidence, _: Endorsements, __: datetime, log: CheckLog) -> Claims:
        with log.step("signature"):
            return one.report

    monkeypatch.setattr(verdicts, "authenticate", authenticate)
    return Bundle(tuple(Evidence(one.kind, one, b"") for one in claims))


def test_a_strict_policy_accepts_a_switch_that_measures_as_its_vendor_says():
    bundle = attest_rig.bundle([*SWITCH, SWITCH_MANIFEST])
    verdict = appraise(bundle, parse_policy(""), Demands(SWITCH_NONCE), MANIFESTS_AT)
    require(verdict)
    assert verdict.status == "affirming"
    (one,) = verdict.appraisals
    assert one.vector == {"hardware": 2, "executables": 3, "instance-identity": 2}


def test_a_lenient_one_says_that_it_is():
    bundle = attest_rig.bundle(SWITCH)
    verdict = appraise(bundle, LENIENT, Demands(SWITCH_NONCE), MANIFESTS_AT)
    require(verdict)
    assert verdict.status == "warning" and verdict.appraisals[0].vector["hardware"] == 32
    strict = refusal(appraise(bundle, parse_policy(""), Demands(SWITCH_NONCE), MANIFESTS_AT))
    assert (strict.reason, strict.check) == (Reason.TCB_LEVEL, "nvidia-switch: tcb")


def test_eight_gpus_are_eight():
    bundle = attest_rig.bundle([EIGHT])
    policy = AllOf((LENIENT, Required({Kind.NVIDIA_GPU: 8})))
    verdict = appraise(bundle, policy, Demands(EIGHT_NONCE), AT)
    require(verdict)
    labels = [one.label for one in verdict.appraisals]
    assert labels == [*(f"nvidia-gpu-{at}" for at in range(1, 9)), "machine"]
    nine = AllOf((LENIENT, Required({Kind.NVIDIA_GPU: 9})))
    assert refusal(appraise(bundle, nine, Demands(EIGHT_NONCE), AT)).reason is Reason.MISSING
    wrong = refusal(appraise(bundle, policy, Demands(SWITCH_NONCE), AT))
    assert (wrong.reason, wrong.check) == (Reason.NONCE, "nvidia-gpu-1: nonce")


def test_one_switch_four_times_is_one():
    bundle = attest_rig.bundle(["nvidia/ls10-switch-evidence-duplicated.json"])
    require(appraise(bundle, LENIENT, Demands(SWITCH_NONCE), AT))
    policy = AllOf((LENIENT, Required({Kind.NVIDIA_SWITCH: 2})))
    verdict = appraise(bundle, policy, Demands(SWITCH_NONCE), AT)
    assert refusal(verdict).reason is Reason.MISSING


def test_where_one_piece_is_not_authentic_no_rule_is_tried():
    good = attest_rig.bundle(["nvidia/hopper-evidence-590-12.json"])
    bad = attest_rig.bundle(
        ["nvidia/hopper-bad-signature-report.txt", "nvidia/hopper-570-124-03-chain.pem"]
    )
    verdict = appraise(good + bad, parse_policy(""), Demands(), AT)
    first, second = verdict.appraisals
    assert (first.status, second.status) == ("none", "contraindicated")
    assert second.claims is None and second.vector == {"hardware": 99}
    assert [one.name for one in second.checks[-2:]] == ["report signature", "policy"]
    assert second.checks[-1].outcome == first.checks[-1].outcome == "skipped"
    assert sum(one.outcome == "failed" for one in verdict.checks) == 1
    error = refusal(verdict)
    assert (error.reason, error.check) == (Reason.SIGNATURE, "nvidia-gpu-2: report signature")


def test_a_refusal_outside_all_steps_is_a_check_too(monkeypatch):
    bundle = made_up(monkeypatch, TDX)

    def authenticate(*_: object) -> Claims:
        raise AppraisalError(Reason.CHAIN, "certificates", "none")

    monkeypatch.setattr(verdicts, "authenticate", authenticate)
    verdict = appraise(bundle, LENIENT, Demands(), AT)
    assert [one.name for one in verdict.checks] == ["certificates", "policy"]
    assert refusal(verdict).reason is Reason.CHAIN


def test_what_the_caller_demands_is_compared_whatever_the_policy_says():
    bundle, policy = attest_rig.bundle([EIGHT]), AllOf((Required({Kind.NVIDIA_GPU: 1}),))
    require(appraise(bundle, policy, Demands(EIGHT_NONCE), AT))
    for demands, reason in (
        (Demands(nonce=SWITCH_NONCE), Reason.NONCE),
        (Demands(tls_key_sha256=bytes(32)), Reason.BINDING_TLS),
        (Demands(weights_root=bytes(32)), Reason.BINDING_WEIGHTS),
    ):
        assert refusal(appraise(bundle, policy, demands, AT)).reason is reason


def test_a_check_that_policy_and_caller_ask_for_counts_once():
    verdict = appraise(attest_rig.bundle([EIGHT]), LENIENT, Demands(EIGHT_NONCE), AT)
    names = [one.name for one in verdict.appraisals[0].checks]
    assert names.count("nonce") == 1


def test_a_cpu_with_real_gpus(monkeypatch):
    gpus = attest_rig.bundle([EIGHT])
    binding = Binding(
        EIGHT_NONCE, b"t" * 32, b"w" * 32, gpu_digest(one.source for one in gpus.evidence)
    )
    host = replace(TDX, report_data=binding.report_data())
    real = verdicts.authenticate

    def authenticate(one: Evidence, *rest: object) -> Claims:
        return one.report if isinstance(one.report, Claims) else real(one, *rest)

    monkeypatch.setattr(verdicts, "authenticate", authenticate)
    cpu = Bundle((Evidence(Kind.INTEL_TDX, host, b""),), binding=binding)
    demands = Demands(EIGHT_NONCE, b"t" * 32, b"w" * 32)
    require(appraise(cpu + gpus, LENIENT, demands, AT))
    fewer = Bundle(tuple(replace(one, source=b"other") for one in gpus.evidence))
    assert refusal(appraise(cpu + fewer, LENIENT, demands, AT)).reason is Reason.BINDING_GPU


def test_debug_is_never_affirmed(monkeypatch):
    bundle = made_up(monkeypatch, replace(TDX, debug=True))
    allowed = AllOf((AcceptedTcb(), Freshness(needs_nonce=False)))
    verdict = appraise(bundle, allowed, Demands(), AT)
    assert verdict.status == "warning" and verdict.appraisals[0].vector["runtime-opaque"] == 32
    refused = appraise(bundle, AllOf((NoDebug(),)), Demands(), AT)
    assert refusal(refused).reason is Reason.DEBUG


def test_software_that_nobody_measured_is_said(monkeypatch):
    bundle = made_up(monkeypatch, replace(TDX, measurements={"mrtd": "aa"}))
    verdict = appraise(bundle, AllOf((NoDebug(),)), Demands(), AT)
    skipped = [one.name for one in verdict.checks if one.outcome == "skipped"]
    assert skipped == ["measurement"] and "executables" not in verdict.appraisals[0].vector
    rule = Measurements(Kind.INTEL_TDX, {"mrtd": frozenset({"aa"})})
    verdict = appraise(bundle, AllOf((rule,)), Demands(), AT)
    assert all(one.outcome == "passed" for one in verdict.checks)
    assert verdict.appraisals[0].vector["executables"] == 3


def test_what_evidence_rests_on_counts(monkeypatch):
    tpm = Claims(Kind.TPM, nonce=b"n" * 32, nested=(replace(TDX, tcb=None),))
    bundle = made_up(monkeypatch, tpm)
    assert refusal(appraise(bundle, AllOf((AcceptedTcb(),)), Demands(), AT)).check == "tpm: tcb"
    verdict = appraise(bundle, AllOf((NoDebug(),)), Demands(), AT)
    assert verdict.status == "warning"


def test_a_policy_that_compares_nothing_accepts_nothing(monkeypatch):
    bundle = made_up(monkeypatch, TDX)
    monkeypatch.setattr(verdicts, "authenticate", lambda one, *_: one.report)
    verdict = appraise(bundle, AllOf((BoundTogether(),)), Demands(), AT)
    assert refusal(verdict).reason is Reason.MISSING


def test_wrong_calls():
    with pytest.raises(UsageError, match="no evidence"):
        appraise(Bundle(), LENIENT, Demands(), AT)
    with pytest.raises(UsageError, match="time zone"):
        appraise(attest_rig.bundle([EIGHT]), LENIENT, Demands(), AT.replace(tzinfo=None))


def test_the_document():
    bundle = attest_rig.bundle(SWITCH)
    verdict = appraise(bundle, parse_policy(""), Demands(SWITCH_NONCE), MANIFESTS_AT)
    body = json.loads(encode_ear(verdict, "veilrun 1"))
    assert body["eat_profile"] == "tag:ietf.org,2026:rats/ear#04"
    assert body["iat"] == int(MANIFESTS_AT.timestamp())
    assert body["ear_verifier_id"] == {"developer": "veilrun", "build": "veilrun 1"}
    assert body["ear_status"] == "contraindicated"
    assert body["eat_nonce"] == "kx2N0K3SA6w9i0-9514RUnju_Nzqxbh2cadI8yNk38s"
    switch = body["submods"]["nvidia-switch"]
    assert switch["ear_status"] == "contraindicated"
    assert switch["ear_trustworthiness_vector"] == {"hardware": 96, "instance-identity": 2}
    assert switch["ear_attester_claims"]["identity"]["chip"] == "LS10"
    checks = switch["ear_verifier_claims"]["checks"]
    assert {"name": "report signature", "outcome": "passed"} in checks
    assert {
        "name": "tcb",
        "outcome": "failed",
        "reason": "tcb-level",
        "detail": "not-run; the policy accepts success",
    } in checks


def test_a_status_is_never_better_than_the_vector():
    tiers = {"affirming": 32, "warning": 96}
    for case in attest_rig.vectors("nvidia"):
        if case["evidence"].endswith(("-report.txt", ".json")) and "nras" not in case["id"]:
            bundle = attest_rig.bundle(attest_rig.files_of(case))
            policy = attest_rig.policy_for(case)
            verdict = appraise(bundle, policy, Demands(), nvidia_rig.time(case["at"]))
            for one in json.loads(encode_ear(verdict, "veilrun 1"))["submods"].values():
                worst = max(one["ear_trustworthiness_vector"].values(), default=0)
                assert worst < tiers.get(one["ear_status"], 128)
