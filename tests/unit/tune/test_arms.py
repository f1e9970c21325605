"""Arms: no two alike, every refusal reachable and only where it belongs, every leak told."""

from __future__ import annotations

import ast
import inspect
import itertools
from dataclasses import replace
from typing import Any

import pytest

from veilrun.errors import UsageError
from veilrun.tune import arms
from veilrun.tune.arms import ARMS, DEFAULT, VLLM_ARMS, Arm, Situation, by_name

BEST = Situation(n_cores=2, has_draft=True)
"""A node that has everything, whose owner allows everything."""

SITUATIONS = (
    BEST,
    replace(BEST, n_cores=1),
    replace(BEST, engine="vllm"),
    replace(BEST, has_draft=False),
    replace(BEST, can_compile=False),
    replace(BEST, on_cpu=False),
    replace(BEST, exact=True),
    replace(BEST, one_salt_per_user=False),
)


def every_arm() -> list[Arm]:
    """All combinations of all parts."""
    parts: dict[str, tuple[Any, ...]] = {
        "batching": ("static", "continuous"),
        "max_running": (1, 4),
        "chunk_tokens": (None, 64),
        "kv_cache": (True, False),
        "prefix_cache": (False, True),
        "speculation": ("none", "prompt-lookup", "draft"),
        "weights": ("stored", "int8"),
        "compiled": (False, True),
        "n_threads": (None, 1, 64),
        "attention": ("sdpa", "eager"),
    }
    return [
        Arm(str(at), **dict(zip(parts, values, strict=True)))
        for at, values in enumerate(itertools.product(*parts.values()))
    ]


@pytest.mark.parametrize("of_one_engine", [ARMS, VLLM_ARMS])
def test_no_two_arms_are_alike_and_none_contradicts_itself(of_one_engine: tuple[Arm, ...]):
    assert len({replace(arm, name="") for arm in of_one_engine}) == len(of_one_engine)
    assert len({arm.describe() for arm in of_one_engine}) == len(of_one_engine)
    for arm in of_one_engine:
        assert arm.conflicts() == (), arm.name


def test_names_are_unique_and_found():
    names = [arm.name for arm in ARMS + VLLM_ARMS]
    assert len(set(names)) == len(names)
    assert all(by_name(arm.name) is arm for arm in ARMS + VLLM_ARMS)
    with pytest.raises(UsageError, match="'quick'"):
        by_name("quick")


def test_where_all_is_at_hand_every_arm_may_run_on_its_engine():
    assert [arm.name for arm in ARMS if BEST.objections(arm)] == []
    on_vllm = replace(BEST, engine="vllm")
    assert [arm.name for arm in VLLM_ARMS if on_vllm.objections(arm)] == []


def test_what_runs_when_nobody_chooses_may_run_anywhere():
    assert ARMS[0] is DEFAULT
    for situation in SITUATIONS:
        assert situation.objections(DEFAULT) == (), situation


def test_every_reason_in_the_source_can_be_given():
    """A rule that no arm can break anywhere is a slip of the pen."""
    tree = ast.parse(inspect.getsource(arms))
    written = {
        key.value
        for one in ast.walk(tree)
        if isinstance(one, ast.Dict)
        for key in one.keys
        if isinstance(key, ast.Constant)
    }
    given: set[str] = set()
    for arm in every_arm():
        for situation in SITUATIONS:
            given.update(situation.objections(arm))
    assert given == written
    assert len(written) > 10


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ({"max_running": 2, "prefix_cache": True}, "where a shared prefix ends"),
        ({"max_running": 2, "speculation": "draft"}, "what was guessed right"),
        ({"kv_cache": False, "prefix_cache": True}, "need kept keys"),
        ({"kv_cache": False, "speculation": "prompt-lookup"}, "need kept keys"),
        ({"kv_cache": False, "batching": "continuous"}, "always keeps"),
        ({"chunk_tokens": 64}, "in pieces"),
        ({"weights": "int8", "compiled": True}, "do not combine"),
    ],
)
def test_a_conflict_is_named_and_refused_everywhere(parts: dict[str, Any], reason: str):
    arm = Arm("odd", **{"batching": "static", **parts})
    (named,) = arm.conflicts()
    assert reason in named
    assert all(named in situation.objections(arm) for situation in SITUATIONS)


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("continuous-16-one-thread", {"n_cores": 1}, "equals another arm"),
        ("single-draft", {"has_draft": False}, "draft model"),
        ("single-compiled", {"can_compile": False}, "compiler"),
        ("static-16-int8", {"on_cpu": False}, "CPU only"),
        ("continuous-16-int8", {"exact": True}, "answers differ"),
        ("single-prefix", {"one_salt_per_user": False}, "refused across keys"),
        ("vllm-16-prefix", {}, "no salted prefix cache"),
        ("vllm-16-lookup", {}, "one request at a time"),
    ],
)
def test_an_objection_is_given_where_it_holds_and_alone(
    name: str, change: dict[str, Any], reason: str
):
    (given,) = replace(BEST, **change).objections(by_name(name))
    assert reason in given


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ({"batching": "static"}, "continuously only"),
        ({"weights": "int8"}, "as they are stored"),
        ({"attention": "eager"}, "attention itself"),
    ],
)
def test_what_vllm_lacks_is_refused_there_only(parts: dict[str, Any], reason: str):
    arm = Arm("odd", **{"batching": "continuous", **parts})
    (given,) = replace(BEST, engine="vllm").objections(arm)
    assert reason in given
    assert BEST.objections(arm) == ()


def test_more_threads_than_cores_are_refused():
    arm = Arm("wide", "static", n_threads=3)
    assert "more threads" in BEST.objections(arm)[0]
    assert replace(BEST, n_cores=3).objections(arm) == ()


def test_only_rounded_weights_change_answers():
    for arm in every_arm():
        assert arm.is_exact == (arm.weights == "stored")
    may_run = [arm.name for arm in ARMS if not replace(BEST, exact=True).objections(arm)]
    assert not any("int8" in name for name in may_run)
    assert len(may_run) > len(ARMS) / 2


def test_every_part_that_leaks_has_its_note_and_no_other_part_has_one():
    words = {"salt", "guessed", "how many others", "longest in its batch", "one scale"}
    for arm in every_arm():
        expected = set()
        if arm.prefix_cache:
            expected.add("salt")
        if arm.speculation != "none":
            expected.add("guessed")
        if arm.max_running > 1:
            is_continuous = arm.batching == "continuous"
            expected.add("how many others" if is_continuous else "longest in its batch")
            if arm.weights == "int8":
                expected.add("one scale")
        notes = arm.leaks()
        assert {word for word in words for note in notes if word in note} == expected
        assert len(notes) == len(expected)


def test_a_prefix_cache_says_that_salts_keep_users_apart():
    for arm in ARMS + VLLM_ARMS:
        told = " ".join(arm.leaks())
        assert ("never shared across salts" in told) == arm.prefix_cache
        assert ("one salt per user" in told) == arm.prefix_cache


def test_other_settings_are_described_in_other_words():
    """Selectors that read must be able to tell any two arms apart."""
    described = {arm.describe() for arm in every_arm()}
    assert len(described) == len(every_arm())
