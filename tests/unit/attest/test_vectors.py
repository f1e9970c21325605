"""Every recorded case gives its expected verdict, by the way that the command takes."""

from __future__ import annotations

import attest_rig
import pytest

from veilrun.attest.reasons import AppraisalError


@pytest.mark.parametrize("case", attest_rig.vectors(), ids=lambda case: case["id"])
def test_recorded_case(case):
    if case["expect"] == "valid":
        attest_rig.judge(case)
        return
    with pytest.raises(AppraisalError) as refusal:
        attest_rig.judge(case)
    assert refusal.value.reason in attest_rig.reasons(case)


def test_cases_are_there():
    attest_rig.path("vectors.json")
    assert len(attest_rig.vectors()) == 111
