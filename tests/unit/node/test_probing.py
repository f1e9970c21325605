"""A node tries a few arms before it opens, and is not fooled by traffic that is not like life."""

from __future__ import annotations

import asyncio

import pytest

from veilrun.node import probing
from veilrun.node.measuring import Outcome
from veilrun.tune.advice import Advice, Option
from veilrun.tune.arms import DEFAULT, Arm, by_name
from veilrun.tune.scenario import Status
from veilrun.tune.workload import Ask, Workload

SINGLE, LOOKUP, INT8 = map(by_name, ("single", "single-lookup", "single-prefix-int8"))
WORK = Workload("chat", 4, 1, 8, 8, repetition=0.5)
ASKS = (Ask((1, 2, 3), 4, 0.0, sampled=False),)


def outcome(latency_s: float, repetition: float = 0.5) -> Outcome:
    return Outcome(latency_s, 0.01, 0.01, 0.01, 10.0, 0.01, 1e6, repetition, ((1,),))


class Canned:
    """Stands for `Trials`: every run of an arm gives what was written down for it, in turn."""

    def __init__(self, results: dict[Arm, list[Outcome | Status]]) -> None:
        self._results = results
        self.asked: list[str] = []

    async def run(self, arm, asks, concurrency, cutoff_s):
        self.asked.append(arm.name)
        return self._results[arm].pop(0)


def probe(results: dict[Arm, list[Outcome | Status]], limit_s: float = 30.0):
    canned = Canned(results)
    return asyncio.run(probing.probe(canned, list(results), ASKS, WORK, limit_s)), canned


def options(*arms: Arm) -> Advice:
    return Advice(tuple(Option(arm, 1.0, 1.0, 1.0) for arm in arms), {}, False, ())


def test_three_arms_are_tried_the_default_among_them():
    arms = probing.shortlist(options(SINGLE, INT8, DEFAULT, LOOKUP), DEFAULT)
    assert arms == (SINGLE, INT8, DEFAULT)
    assert probing.shortlist(options(DEFAULT, SINGLE, INT8), DEFAULT)[-1] == DEFAULT
    assert len(probing.shortlist(options(SINGLE, INT8, LOOKUP), DEFAULT)) == 3
    assert probing.shortlist(options(SINGLE), DEFAULT) == (SINGLE,)


def test_the_quicker_one_wins_by_its_median_round():
    told, canned = probe(
        {
            SINGLE: [outcome(one) for one in (0.5, 0.1, 0.4)],
            INT8: [outcome(one) for one in (0.9, 0.3, 0.2)],
        }
    )
    assert told.chosen == INT8
    assert canned.asked == ["single", "single-prefix-int8"] * 3
    assert told.speed_up(SINGLE) == pytest.approx(4 / 3)
    assert told.speed_up(LOOKUP) is None


def test_a_little_quicker_is_not_enough():
    told, _ = probe({SINGLE: [outcome(0.40)] * 3, INT8: [outcome(0.39)] * 3})
    assert told.chosen == SINGLE


def test_a_failed_arm_is_not_taken_nor_tried_again():
    told, canned = probe({SINGLE: [Status.CRASH], INT8: [outcome(0.9)] * 3})
    assert told.chosen == INT8
    assert canned.asked.count("single") == 1
    assert told.outcomes["single"] is Status.CRASH


def test_where_everything_fails_the_advice_stands():
    assert probe({SINGLE: [Status.CRASH], INT8: [Status.TIMEOUT]})[0].chosen == SINGLE


def test_an_unlifelike_trial_neither_makes_nor_breaks_a_guessing_arm():
    unlike = [outcome(0.1, repetition=0.0)] * 3
    assert probe({SINGLE: [outcome(0.4)] * 3, LOOKUP: list(unlike)})[0].chosen == SINGLE
    slow = [outcome(0.9, repetition=0.0)] * 3
    assert probe({LOOKUP: slow, SINGLE: [outcome(0.4, 0.0)] * 3})[0].chosen == LOOKUP


def test_a_lifelike_trial_decides_about_guessing_arms_too():
    assert probe({SINGLE: [outcome(0.4)] * 3, LOOKUP: [outcome(0.1)] * 3})[0].chosen == LOOKUP
    assert probe({LOOKUP: [outcome(0.9)] * 3, SINGLE: [outcome(0.4)] * 3})[0].chosen == SINGLE


def test_the_time_limit_ends_the_trial():
    told, canned = probe({SINGLE: [outcome(0.4)], INT8: [outcome(0.1)]}, limit_s=0.0)
    assert (told.chosen, canned.asked, told.outcomes) == (SINGLE, [], {})


def test_a_later_round_that_fails_leaves_the_others():
    told, _ = probe(
        {SINGLE: [outcome(0.4), Status.TIMEOUT, outcome(0.4)], INT8: [outcome(0.9)] * 3}
    )
    assert told.chosen == SINGLE
    assert isinstance(told.outcomes["single"], Outcome)
