"""Every learner: finds what can be found, never takes an arm that may not run, leaks nothing."""

from __future__ import annotations

import numpy as np
import pytest
from tune_tables import decided, table

from veilrun.errors import UsageError
from veilrun.tune.scenario import Status
from veilrun.tune.selectors.base import Estimate, Lesson, best_first, combine, fallback, pick
from veilrun.tune.selectors.boosting import Boosting
from veilrun.tune.selectors.clusters import Clusters
from veilrun.tune.selectors.constant import Default, SingleBest, random_loss
from veilrun.tune.selectors.factors import Factors
from veilrun.tune.selectors.features import Preparation
from veilrun.tune.selectors.folds import at_random, best_setting, by_word, inner
from veilrun.tune.selectors.forest import Forest
from veilrun.tune.selectors.knn import Neighbours
from veilrun.tune.selectors.pairwise import Pairwise, portfolio
from veilrun.tune.selectors.texts import Texts, ngrams
from veilrun.tune.selectors.trees import Trees

FEW = Trees(n_trees=30)
LEARNERS = {
    "forest": Forest(FEW),
    "boosting": Boosting(n_boosts=2, n_rounds=40),
    "pairwise": Pairwise(FEW),
    "factors": Factors(trees=FEW),
    "knn": Neighbours(),
    "clusters": Clusters(),
    "texts": Texts(),
}
ESTIMATORS = ("forest", "boosting", "pairwise")
EVERY = {**LEARNERS, "single best": SingleBest(), "default": Default()}


def gap(scenario, chosen):
    loss = scenario.loss
    single = loss[:, best_first(loss)[0]].mean()
    mine = np.take_along_axis(loss, chosen[:, None], 1).mean()
    return (single - mine) / (single - loss.min(1).mean())


def ask(fitted, scenario):
    return fitted.choose(scenario.features, scenario.applicable, scenario.task_texts)


@pytest.mark.parametrize("name", LEARNERS)
def test_what_features_tell_is_found(name):
    fitted = LEARNERS[name].fit(decided())
    fresh = decided(seed=1)
    # clusters know nothing of arms: features that tell nothing weigh as much as those that do
    assert gap(fresh, ask(fitted, fresh)) > (0.3 if name == "clusters" else 0.85)


@pytest.mark.parametrize("name", EVERY)
def test_an_arm_that_may_not_run_is_never_chosen(name):
    rng = np.random.default_rng(3)
    full = decided(default="b")
    status = full.status.copy()
    status[rng.random(status.shape) < 0.4] = Status.NOT_APPLICABLE
    status[np.arange(len(status)), rng.integers(0, 3, len(status))] = Status.OK
    holed = table(
        full.results, full.features, status=status, default="b",
        task_texts=full.task_texts, arm_texts=full.arm_texts,
    )  # fmt: skip
    chosen = ask(EVERY[name].fit(holed), holed)
    assert holed.applicable[np.arange(len(chosen)), chosen].all()
    with pytest.raises(UsageError, match="no applicable arm"):
        EVERY[name].fit(holed).choose(
            holed.features[:1], np.zeros((1, 3), bool), holed.task_texts[:1]
        )


@pytest.mark.parametrize("name", LEARNERS)
def test_rows_with_missing_arms_teach_about_the_arms_they_have(name):
    full = decided()
    results = full.results.copy()
    results[::2, 1] = np.nan  # arm b ran on every second task only
    results[:, 2] = np.nan  # arm c never ran
    results[5] = np.nan  # nobody ran this one
    holed = table(results, full.features, task_texts=full.task_texts, arm_texts=full.arm_texts)
    fresh = decided(seed=1)
    chosen = ask(LEARNERS[name].fit(holed), fresh)
    assert set(chosen) == {0, 1}
    told = np.isin(np.array(fresh.groups["kind"]), ("short", "long"))
    best = fresh.loss[:, :2].argmin(1)
    assert (chosen == best)[told].mean() > 0.85


@pytest.mark.parametrize("name", ESTIMATORS)
def test_estimates_are_of_the_loss_relative_to_the_single_best(name):
    train, fresh = decided(), decided(seed=1)
    fitted = LEARNERS[name].fit(train)
    estimate = fitted.estimate(fresh.features)
    assert (estimate.sd >= 0).all()
    single = fitted.order[0]
    assert np.abs(estimate.mean[:, single]).max() < 1e-9
    truth = fresh.loss - fresh.loss[:, [single]]
    error = np.abs(estimate.mean - truth).mean()
    # pairwise votes in units of the mean difference: right in sign and order of size only
    assert error < (0.6 if name == "pairwise" else 0.2)


@pytest.mark.parametrize("name", LEARNERS)
def test_twice_the_same_fit_gives_the_same_choices(name):
    train, fresh = decided(told=False), decided(told=False, seed=1)
    first, second = (ask(LEARNERS[name].fit(train), fresh) for _ in range(2))
    assert (first == second).all()


def test_constants():
    scenario = table([[1, 2, 9], [1, 2, 9], [np.nan, 8, 4]], default="c")
    assert ask(SingleBest().fit(scenario), scenario).tolist() == [0, 0, 1]
    assert ask(Default().fit(scenario), scenario).tolist() == [2, 2, 2]
    assert not SingleBest().fit(scenario).uses_features
    assert random_loss(np.array([[1.0, 3.0, np.nan]])).tolist() == [2.0]
    with pytest.raises(UsageError, match="default"):
        Default().fit(table([[1, 2]]))


def test_an_arm_that_ran_on_easy_tasks_only_is_not_the_single_best():
    # c ran on the easy task only, where it was the slowest
    loss = np.array([[1.0, 2.0, 3.0], [100.0, 101.0, np.nan], [100.0, 101.0, np.nan]])
    assert best_first(loss).tolist() == [0, 1, 2]


def test_pick_breaks_ties_and_nan_by_the_order():
    order = np.array([2, 0, 1])
    scores = np.array([[0.0, 0.0, 0.0], [np.nan, 5.0, np.nan], [np.nan, np.nan, np.nan]])
    may = np.ones((3, 3), bool)
    assert pick(scores, may, order).tolist() == [2, 1, 2]
    may[:, 2] = False
    assert fallback(may, order).tolist() == [0, 0, 0]


def test_preparation_learns_from_training_rows_only():
    train = np.array([[1.0, 7.0, np.nan], [3.0, 7.0, 4.0], [5.0, 7.0, 4.0]])
    learnt = Preparation.fit(train)
    # kept: column 0, and where 2 has holes; 1 is constant, and so is 2 once it is filled
    assert learnt.apply(train).tolist() == [[1, 1], [3, 0], [5, 0]]
    strange = np.array([[np.nan, 1e300, 1e300], [np.inf, 0.0, np.nan]])
    assert learnt.apply(strange).tolist() == [[3, 0], [3, 1]]
    assert np.abs(learnt.standardise(train).mean(0)).max() < 1e-12
    assert Preparation.fit(np.ones((3, 2))).apply(np.zeros((2, 2))).tolist() == [[0.0], [0.0]]


def test_a_table_without_a_single_run_is_refused():
    with pytest.raises(UsageError, match="no row has a measured arm"):
        Lesson.of(table([[np.nan, np.nan]]))


def test_the_portfolio_holds_arms_that_complement_each_other():
    relative = np.array([[0.0, -1.0, -0.9, 5.0], [0.0, 5.0, 5.0, -1.0]])
    assert portfolio(relative, 0, 8) == [0, 1, 3]  # arm 2 adds nothing to arm 1
    assert portfolio(relative, 0, 2) == [0, 1]


def test_inner_folds_follow_the_callers_folds():
    words = by_word(["m1", "m2", "m1", "m3"] * 10)
    scenario = table(np.ones((40, 2)), folds=words)
    folds = inner(scenario, 0)
    assert len(np.unique(folds)) == 3
    assert all(len(np.unique(folds[words == one])) == 1 for one in range(3))
    many = table(np.ones((40, 2)), folds=np.arange(40) // 2)
    folds = inner(many, 0)
    assert len(np.unique(folds)) == 5 and (folds[::2] == folds[1::2]).all()
    alone = table(np.ones((40, 2)), folds=np.zeros(40, np.int64))
    assert len(np.unique(inner(alone, 0))) == 5
    assert np.bincount(at_random(12, 5, 0)).tolist() == [3, 3, 2, 2, 2]


def test_inner_validation_finds_the_better_setting():
    def fit(train, name):
        return EVERY[name].fit(train)

    assert best_setting(decided(), ("single best", "forest"), fit, 0) == "forest"


def test_combine_counts_doubt_within_and_between():
    one = Estimate(np.array([[1.0]]), np.array([[3.0]]))
    two = Estimate(np.array([[9.0]]), np.array([[3.0]]))
    both = combine([one, two])
    assert both.mean.item() == 5 and both.sd.item() == 5  # sqrt(3^2 + 4^2)
    silent = Estimate(np.array([[np.nan]]), np.array([[np.nan]]))
    alone = combine([one, silent])
    assert alone.mean.item() == 1 and alone.sd.item() == 3
    assert np.isnan(combine([silent, silent]).mean.item())


def test_texts_need_sentences():
    bare = decided(task_texts=(), arm_texts=())
    with pytest.raises(UsageError, match="a sentence each"):
        Texts().fit(bare)
    with pytest.raises(UsageError, match="0 sentences"):
        Texts().fit(decided()).choose(bare.features, bare.applicable, ())


def test_ngrams_know_which_sentences_share_letters():
    a, b, c = ngrams(["continuous batching", "continuous batches", "prompt lookup"])
    assert np.linalg.norm(a) == pytest.approx(1)
    assert a @ b > 0.7 > 0.2 > a @ c
    assert np.abs(ngrams([""])).max() <= 1
