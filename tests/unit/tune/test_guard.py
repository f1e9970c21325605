"""The guard, and the selector that tunes it: no gain is claimed that chance would explain."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from tune_tables import decided, table

from veilrun.errors import DecodeError, UsageError
from veilrun.tune.evaluation import evaluate
from veilrun.tune.guard import (
    THRESHOLDS,
    Candidate,
    Trial,
    candidates,
    guarded,
    standard_error,
)
from veilrun.tune.scenario import Scale
from veilrun.tune.selector import MetaSelector, trial_from_json, trial_to_json
from veilrun.tune.selectors.base import Estimate
from veilrun.tune.selectors.forest import Forest
from veilrun.tune.selectors.trees import Trees

OURS = MetaSelector(n_trees=12)
ORDER = np.array([0, 1, 2])


def test_a_choice_stands_where_its_gain_is_worth_its_doubt():
    estimate = Estimate(np.array([[0, -1.0, 2]] * 2), np.array([[0, 1.5, 1], [0, 0.5, 1]]))
    may = np.ones((2, 3), bool)
    assert guarded(estimate, may, ORDER, 0.0).tolist() == [1, 1]
    assert guarded(estimate, may, ORDER, 1.0).tolist() == [0, 1]
    assert guarded(estimate, may, ORDER, 2.0).tolist() == [0, 0]  # exactly at the line is not above
    assert guarded(estimate, may, ORDER, math.inf).tolist() == [0, 0]
    may[:, 0] = False  # the next best is the arm of retreat, and the gain is counted from it
    assert guarded(estimate, may, ORDER, math.inf).tolist() == [1, 1]
    may[:, 1] = False
    assert guarded(estimate, may, ORDER, 1.0).tolist() == [2, 2]


def test_an_arm_nobody_knows_is_no_gain():
    estimate = Estimate(np.full((1, 3), np.nan), np.full((1, 3), np.nan))
    assert guarded(estimate, np.ones((1, 3), bool), ORDER, 0.0).tolist() == [0]


def test_features_that_decide_close_the_gap():
    score = evaluate(decided(folds=np.arange(160) % 4), {"ours": OURS}, "folds").of("ours")
    assert score.closed_gap > 0.9
    assert not any(fold.is_worse for fold in score.folds)


def test_noise_is_not_acted_upon_and_an_unguarded_forest_is_below():
    guarded, unguarded = [], []
    for seed in range(4):
        noise = decided(told=False, seed=seed, n=120, folds=np.arange(120) % 4)
        result = evaluate(noise, {"ours": OURS, "forest": Forest(Trees(12))}, "folds")
        ours = result.of("ours")
        assert ours.closed_gap_interval[1] >= 0
        guarded.append(ours.closed_gap)
        unguarded.append(result.of("forest").closed_gap)
    assert np.mean(guarded) > -0.02 > np.mean(unguarded)


def test_candidates_are_every_blend_behind_every_threshold():
    learners = {"a": Forest(Trees(10)), "b": Forest(Trees(10, seed=1))}
    found = candidates(learners, [("a", "b"), ("a",)], decided(n=60), seed=0)
    assert len(found) == 2 * len(THRESHOLDS)
    assert (found[0].members, found[0].threshold) == (("a", "b"), 0.0)
    assert all(one.trial().gain > 0 and 0 < one.trial().error < math.inf for one in found)


def test_a_candidate_beats_another_by_more_than_chance_only():
    rng = np.random.default_rng(0)
    tasks = [rng.normal(size=40) for _ in range(5)]  # what both have in common counts for neither
    first = Candidate(("a",), 0.0, tuple(tasks), by_group=True)
    better = Candidate(
        ("b",), 0.0, tuple(one + 0.1 + rng.normal(0, 0.1, 40) for one in tasks), True
    )
    noise = rng.normal(0, 1, (5, 40))
    noise += 0.02 - noise.mean()  # ahead by less than a third of the error
    luckier = Candidate(("c",), 0.0, tuple(np.array(tasks) + noise), True)
    assert better.beats(first) and not first.beats(better)
    assert luckier.trial().gain > first.trial().gain and not luckier.beats(first)
    assert not first.beats(first)


def test_the_standard_error_sees_that_folds_move_together():
    rng = np.random.default_rng(0)
    alone = [rng.normal(size=50) for _ in range(20)]
    assert standard_error(alone, by_group=True) == pytest.approx(1 / math.sqrt(1000), rel=0.4)
    together = [one + 3 * rng.normal() for one in alone]
    assert standard_error(together, by_group=True) == pytest.approx(3 / math.sqrt(20), rel=0.4)
    assert standard_error(together, by_group=False) < 0.2
    assert standard_error([np.ones(3)], by_group=True) == math.inf


def test_caution_may_be_more_than_any_gain():
    shy = MetaSelector(learners=("forest",), n_trees=10, caution=1e9)
    fitted = shy.fit(decided(n=60))
    assert fitted.verdict == Trial() and not fitted.uses_features
    assert "always" in fitted.describe()
    assert np.abs(fitted.estimate(np.zeros((2, 3))).mean).max() == 0
    assert (fitted.choose(np.zeros((2, 3)), np.ones((2, 3), bool), ()) == fitted.order[0]).all()


def test_settings_and_verdict_bring_the_same_selector_back():
    train, fresh = decided(n=80), decided(n=80, seed=1)
    fitted = OURS.fit(train)
    assert fitted.uses_features and fitted.verdict.members
    settings = json.loads(json.dumps(OURS.to_json(), allow_nan=False))
    verdict = json.loads(json.dumps(trial_to_json(fitted.verdict), allow_nan=False))
    again = MetaSelector.from_json(settings).refit(train, trial_from_json(verdict))
    asked = (fresh.features, fresh.applicable, ())
    assert (again.choose(*asked) == fitted.choose(*asked)).all()
    assert again.describe() == fitted.describe() and "held-out" in fitted.describe()
    assert trial_from_json(trial_to_json(Trial())) == Trial()


@pytest.mark.parametrize(
    "change", [{"n_trees": "many"}, {"seed": True}, {"more": 1}, {"seed": None}]
)
def test_damaged_settings_are_refused(change):
    with pytest.raises(DecodeError):
        MetaSelector.from_json(OURS.to_json() | change)


@pytest.mark.parametrize("change", [{"members": []}, {"members": ["oracle"]}, {"gain": "much"}])
def test_a_damaged_verdict_is_refused(change):
    good = trial_to_json(Trial(("forest",), 0.5, 1.0, 0.1))
    with pytest.raises(DecodeError):
        trial_from_json(good | change)


def test_senseless_settings_are_refused():
    for wrong in ({"learners": ()}, {"learners": ("oracle",)}, {"n_trees": 0}, {"caution": -1.0}):
        with pytest.raises(UsageError):
            MetaSelector(**wrong)


def test_features_that_cost_more_than_they_save_are_not_used():
    free = decided(n=80)
    seconds = 1 + 3 * (free.results > free.results.min(1, keepdims=True))
    dear = table(seconds, free.features, scale=Scale.RUNTIME, feature_cost=np.full(80, 50.0))
    cheap = table(seconds, free.features, scale=Scale.RUNTIME, feature_cost=np.full(80, 0.1))
    assert not OURS.fit(dear).uses_features
    assert OURS.fit(cheap).uses_features
