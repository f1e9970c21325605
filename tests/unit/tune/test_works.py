"""Parts of the work: each rises and falls with what makes it, and with nothing else."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import compress

import numpy as np
import pytest
from tune_runs import MACHINE, runs, shape

from veilrun.tune import works
from veilrun.tune.arms import DEFAULT
from veilrun.tune.records import to_scenario
from veilrun.tune.selectors.base import Lesson
from veilrun.tune.workload import Workload

WORK = Workload("mine", 8, 2, 100, 20, prefix_tokens=60, repetition=0.4, agreement=0.8)
SHAPE = shape(4)


def parts(shape=SHAPE, machine=MACHINE, work=WORK) -> dict[str, float]:
    return works.works(shape, machine, work)


def changed(**change) -> set[str]:
    """The parts that differ when the workload does."""
    before, after = parts(), parts(work=replace(WORK, **change))
    return {name for name in before if not math.isclose(before[name], after[name], rel_tol=1e-9)}


@pytest.mark.parametrize(
    ("n", "concurrency", "in_line"),
    [(1, 1, 1.0), (8, 1, 1.0), (4, 4, 2.5), (8, 2, 15 / 8), (3, 100, 2.0)],
)
def test_a_request_waits_for_those_before_it(n: int, concurrency: int, in_line: float):
    alone, one = (
        parts(work=Workload("x", requests, at_once, 10, 10))
        for requests, at_once in ((n, concurrency), (1, 1))
    )
    assert alone["alone_small"] == pytest.approx(in_line * one["alone_small"])


def test_requests_at_random_moments_wait_as_the_machine_is_busy():
    def in_line(rate: float) -> float:
        work = Workload("x", 9, 9, 10, 10, rate_per_s=rate)
        one = parts(work=replace(work, n_requests=1))
        return parts(work=work)["alone_small"] / one["alone_small"]

    seldom, often, all_at_once = (in_line(rate) for rate in (0.01, 10.0, 1e5))
    assert seldom == pytest.approx(1.0, abs=0.01)
    assert seldom < often < all_at_once
    assert all_at_once == pytest.approx(5.0, abs=0.05)  # the mean place among nine


def test_what_is_guessed_drafted_or_remembered_is_saved_there_and_nowhere_else():
    costs = ("small", "read_all", "read_8")
    assert changed(repetition=0.9) == {f"guessed_{cost}" for cost in costs}
    assert changed(agreement=0.2) == {f"drafted_{cost}" for cost in costs}
    assert changed(prefix_tokens=10) == {"new_product_all", "new_product_8"}
    assert parts()["guessed_small"] == pytest.approx(0.6 * parts()["alone_small"])
    nothing = parts(work=replace(WORK, repetition=0, agreement=0, prefix_tokens=0))
    assert nothing["guessed_small"] == nothing["drafted_small"] == nothing["alone_small"]
    assert nothing["new_product_all"] == nothing["prompt_product_all"]


def test_sampled_requests_guess_nothing():
    sampled = parts(work=replace(WORK, sampled=1.0))
    assert sampled["guessed_small"] == sampled["drafted_small"] == sampled["alone_small"]


def test_what_eight_bits_do_not_reach_is_a_part_of_its_own():
    found = parts(replace(SHAPE, linear=False))
    assert found["prompt_product_8"] == 0 < found["prompt_product_rest"]
    assert 0 < found["alone_read_8"] < found["alone_read_rest"]
    assert parts()["alone_read_rest"] == 0
    for whole in (name for name in found if name.endswith("_all")):
        apart = (found[whole.removesuffix("all") + end] for end in ("8", "rest"))
        assert found[whole] == pytest.approx(sum(apart))


def test_a_slower_machine_takes_longer_by_as_much():
    slow = replace(
        MACHINE, gflops_all=MACHINE.gflops_all / 3, copy_gbps=MACHINE.copy_gbps / 3,
        step_us=MACHINE.step_us * 3,
    )  # fmt: skip
    assert parts(machine=slow) == pytest.approx({name: 3 * s for name, s in parts().items()})


@pytest.mark.parametrize(
    ("arm", "needs", "needs_not"),
    [
        ("single", {"alone_small", "alone_read_all", "prompt_product_all", "one_token"},
         {"alone_read_8", "guessed_small", "new_product_all", "again_product_all", "joined_small"}),
        ("single-no-cache", {"again_product_all"}, {"new_product_all"}),
        ("single-lookup", {"guessed_small", "alone_small"}, {"drafted_small"}),
        ("single-draft", {"drafted_small"}, {"guessed_small"}),
        ("single-prefix-int8", {"new_product_8", "new_product_rest", "alone_read_8"},
         {"new_product_all", "guessed_small"}),
        ("continuous-16", {"joined_small", "joined_prompt_product_all"},
         {"alone_small", "joinedfew_small", "padded_small", "chunked_small"}),
        ("continuous-4", {"joinedfew_small"}, {"joined_small"}),
        ("continuous-16-chunk-64", {"chunked_start"}, {"joined_start"}),
        ("static-16-int8", {"padded_answer_product_8"}, {"padded_answer_product_all"}),
        ("nobody's", {"alone_small", "joined_small", "padded_read_8"}, set()),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_an_arm_needs_some_parts_only(arm: str, needs: set[str], needs_not: set[str]):
    tells = works.needed(arm)
    assert needs | needs_not <= set(parts())
    assert all(tells(f"workload.work_{part}") for part in needs)
    assert not any(tells(f"workload.work_{part}") for part in needs_not)


@pytest.mark.parametrize(
    "work",
    [
        Workload("least", 1, 1, 1, 1),
        Workload("most", 100_000, 100_000, 10**6, 10**6, spread=3.0, rate_per_s=1e6),
        replace(WORK, agreement=1.0, repetition=1.0, prefix_tokens=99),
    ],
    ids=lambda work: work.kind,
)
def test_parts_are_finite_and_none_is_negative(work: Workload):
    assert all(math.isfinite(s) and s >= 0 for s in parts(work=work).values())
    assert all(math.isfinite(s) for s in works.features(SHAPE, MACHINE, work).values())


def test_a_table_of_records_tells_the_parts():
    scenario = to_scenario(runs(1), "made up", None, DEFAULT.name).scenario
    told = set(compress(scenario.feature_names, scenario.is_work))
    assert told == {f"workload.work_{name}" for name in parts()}
    assert np.isfinite(scenario.features).all()
    lesson = Lesson.of(scenario)  # what learners see that add nothing up
    assert lesson.inputs.shape[1] <= (~scenario.is_work).sum()
    assert lesson.works.shape[1] == scenario.is_work.sum()
    assert (lesson.works > 0).all()
