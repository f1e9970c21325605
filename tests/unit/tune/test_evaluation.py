"""Scores against tables small enough to work out by hand, and what must not leak."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
from tune_tables import decided, table

from veilrun.errors import UsageError
from veilrun.tune.evaluation import evaluate
from veilrun.tune.scenario import Scale, Status
from veilrun.tune.selector import MetaSelector
from veilrun.tune.selectors.base import ByScore
from veilrun.tune.selectors.forest import Forest
from veilrun.tune.selectors.trees import Trees

FOREST = Forest(Trees(n_trees=30))


@dataclass(frozen=True)
class Always:
    """Takes one arm, looking at features or not; keeps what it was given to learn from."""

    arm: int
    looks: bool = False
    given: list | None = None

    def fit(self, train):
        if self.given is not None:
            self.given.append(train)
        scores = np.ones(len(train.arms))
        scores[self.arm] = 0
        order = np.arange(len(train.arms))
        return ByScore(
            lambda features, texts: np.tile(scores, (len(features), 1)), order, self.looks
        )


def test_latency_by_hand():
    # a is the single best on both training folds; b is best on the last two tasks
    seconds = np.array([[1, 4], [1, 4], [1, 4], [1, 8], [2, 1], [2, 1]], float)
    scenario = table(seconds, default="b", folds=np.array([0, 0, 0, 1, 1, 1]))
    result = evaluate(scenario, {"b": Always(1)}, "folds")
    b, single, oracle = result.of("b"), result.of("single best"), result.of("oracle")
    one = math.log(2)
    assert single.mean_loss == pytest.approx(2 * one / 6)
    assert b.closed_gap == pytest.approx((2 * one - 9 * one) / (2 * one))
    assert (single.closed_gap, oracle.closed_gap) == (0, 1)
    assert b.mean_regret == pytest.approx((3 + 3 + 3 + 7) / 6) and b.max_regret == pytest.approx(7)
    assert b.accuracy == pytest.approx(2 / 6)
    assert b.f1 == pytest.approx(2 / 6 * 0.5)  # b: precision 1/3, recall 1; a: 0; weights 2/6, 4/6
    assert b.speed_up == pytest.approx(1)
    assert single.speed_up == pytest.approx(2 ** (7 / 6))
    assert result.of("random").mean_loss == pytest.approx((9 + 2) * one / 2 / 6)
    assert result.of("default").chosen == ("b",) * 6
    assert [fold.worse_by for fold in b.folds] == pytest.approx([2 * one, one / 3])
    assert [fold.is_worse for fold in b.folds] == [True, False]
    assert not any(fold.is_worse for fold in single.folds)
    low, high = b.closed_gap_interval
    assert low < b.closed_gap < high


def test_runtimes_pay_for_features_and_fail_beyond_the_cutoff():
    seconds = np.array([[10, 95], [10, 95], [99, 40], [99, 40]], float)
    costs = np.array([1.0, np.nan, 1, 2])
    scenario = table(
        seconds, scale=Scale.RUNTIME, cutoff=100.0, feature_cost=costs, folds=np.array([0, 1, 0, 1])
    )
    result = evaluate(scenario, {"looks": Always(0, looks=True), "blind": Always(0)}, "folds")
    assert result.of("blind").mean_loss == pytest.approx((10 + 10 + 99 + 99) / 4)
    assert result.of("looks").mean_loss == pytest.approx((11 + 10 + 1000 + 1000) / 4)
    assert result.of("oracle").mean_loss == pytest.approx(25)
    assert result.of("looks").max_regret == pytest.approx(960)
    assert math.isnan(result.of("looks").speed_up)


def test_quality_and_failures():
    quality = np.array([[0.9, 0.8], [0.7, np.nan], [0.6, 0.9], [0.6, 0.9]])
    status = np.where(np.isnan(quality), Status.CRASH, Status.OK)
    scenario = table(quality, scale=Scale.QUALITY, status=status, folds=np.array([0, 0, 1, 1]))
    result = evaluate(scenario, {"b": Always(1)}, "folds")
    assert result.of("b").regret == pytest.approx([0.1, 0.1, 0, 0])  # a crash is the worst seen


def test_tasks_that_nobody_ran_are_left_out():
    scenario = table([[1, 2], [np.nan, np.nan], [1, 2], [2, np.nan]], folds=np.array([0, 0, 1, 1]))
    result = evaluate(scenario, {"b": Always(1)}, "folds")
    assert result.tasks == ("task 0", "task 2", "task 3")
    assert result.of("b").chosen == ("b", "b", "a")


def test_no_gap_to_close_is_not_a_number_and_json_has_null():
    result = evaluate(table(np.ones((20, 2))), {"a": Always(0)}, "tasks")
    assert math.isnan(result.of("a").closed_gap)
    plain = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert plain["scores"][0]["closed_gap"] is None
    assert plain["scores"][0]["folds"][0]["interval"] == [0.0, 0.0]
    assert len(plain["tasks"]) == 20


def test_a_selector_learns_from_the_other_folds_only_and_hears_which():
    scenario = decided(n=60)
    for hold_out in ("kind", "tasks"):
        given = []
        result = evaluate(scenario, {"a": Always(0, given=given)}, hold_out)
        asked = [set(scenario.tasks) - set(train.tasks) for train in given]
        assert set.union(*asked) == set(scenario.tasks)
        assert sum(map(len, asked)) == len(scenario.tasks) == len(result.of("a").regret)
        if hold_out == "kind":
            assert [fold.fold for fold in result.of("a").folds] == ["long", "shared", "short"]
            for train, fold in zip(given, result.of("a").folds, strict=True):
                assert fold.fold not in train.groups["kind"]
                by_word = {(a, b) for a, b in zip(train.groups["kind"], train.folds, strict=True)}
                assert len(by_word) == 2  # inner folds are the two other words
        else:
            assert all(train.folds is None for train in given)


def test_a_feature_that_only_names_the_held_out_group_does_not_help():
    rng = np.random.default_rng(0)
    model = np.repeat(np.arange(12), 24)
    best = rng.permutation(np.arange(12) % 3)[model]
    seconds = np.exp(rng.normal(0, 0.05, (288, 3)))
    seconds[np.arange(288), best] /= 3
    identity = np.eye(12)[model]
    scenario = table(seconds, identity, groups={"model": tuple(f"m{one:02}" for one in model)})
    ours = MetaSelector(n_trees=9)
    mixed = replace(scenario, folds=np.arange(288) % 3)
    known = evaluate(mixed, {"ours": ours}, "folds").of("ours")
    unknown = evaluate(scenario, {"ours": ours}, "model").of("ours")
    assert known.closed_gap > 0.9
    assert unknown.closed_gap < 0.1
    assert not any(fold.is_worse for fold in unknown.folds)


@pytest.mark.parametrize("selector", [FOREST, MetaSelector(n_trees=9)])
def test_what_a_held_out_task_would_have_cost_changes_no_choice(selector):
    scenario = decided(n=90, folds=np.arange(90) % 3)
    rng = np.random.default_rng(0)
    before = evaluate(scenario, {"it": selector}, "folds").of("it").chosen
    asked = np.flatnonzero(scenario.folds == 1)
    results = scenario.results.copy()
    results[asked] = rng.permuted(results[asked], axis=1) * rng.lognormal(0, 3, (len(asked), 3))
    after = evaluate(replace(scenario, results=results), {"it": selector}, "folds").of("it").chosen
    assert [before[i] for i in asked] == [after[i] for i in asked]
    assert before != after  # the other folds learn from the changed rows


def test_groups_are_resampled_whole():
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(8), 20)
    gain = rng.normal(0, 1, 8)[group]
    seconds = np.exp(np.stack([np.zeros(160), gain, np.full(160, 0.1)], 1))
    scenario = table(seconds, groups={"model": tuple(f"m{one}" for one in group)}, folds=group)
    whole = evaluate(scenario, {"b": Always(1)}, "model").of("b").mean_regret_interval
    single = evaluate(scenario, {"b": Always(1)}, "folds").of("b").mean_regret_interval
    assert whole[1] - whole[0] > 2 * (single[1] - single[0])


def test_progress_and_notes():
    seen = []
    result = evaluate(
        decided(n=40), {"ours": MetaSelector(n_trees=5)}, "kind", lambda *at: seen.append(at)
    )
    assert seen == [(i + 1, 6) for i in range(6)]
    assert [note[:2] for note in result.notes] == [
        ("ours", one) for one in ("long", "shared", "short")
    ]


def test_what_cannot_be_held_out_is_refused():
    scenario = decided(n=20)
    for hold_out, reason in (("folds", "no folds"), ("machine", "it can: tasks, folds, kind")):
        with pytest.raises(UsageError, match=reason):
            evaluate(scenario, {"a": Always(0)}, hold_out)
    with pytest.raises(UsageError, match="at least two"):
        evaluate(replace(scenario, groups={"kind": ("x",) * 20}), {"a": Always(0)}, "kind")
    with pytest.raises(UsageError, match="oracle"):
        evaluate(scenario, {"oracle": Always(0)}, "kind")
    with pytest.raises(UsageError, match="not evaluated"):
        evaluate(scenario, {"a": Always(0)}, "kind").of("b")


def test_a_table_of_some_arms_is_the_same_table():
    whole = decided(n=12, default="a")
    part = whole.columns(["c", "a"])
    assert part.arms == ("c", "a")
    assert part.default == "a"
    np.testing.assert_array_equal(part.results, whole.results[:, [2, 0]])
    assert part.arm_texts == (whole.arm_texts[2], whole.arm_texts[0])
    assert whole.columns(["b"]).default is None
