"""The law: constants come back from times, whatever the day's pace, and hold for larger models."""

from __future__ import annotations

from dataclasses import replace
from itertools import compress

import numpy as np
import pytest
from tune_runs import MACHINE, known, shape
from tune_tables import decided

from veilrun.errors import UsageError
from veilrun.tune import works
from veilrun.tune.arms import DEFAULT
from veilrun.tune.records import Record, to_scenario
from veilrun.tune.scenario import Scale, Scenario, Status
from veilrun.tune.selectors.base import Lesson, best_first
from veilrun.tune.selectors.forest import Forest
from veilrun.tune.selectors.law import Law
from veilrun.tune.selectors.trees import Trees
from veilrun.tune.task import Task
from veilrun.tune.workload import KINDS

FEW = Trees(n_trees=20, leaf=3)
RECIPES = {
    "continuous-16": {
        "joined_small": 1.3, "joined_prompt_product_all": 1.0, "joined_read_all": 1.0,
    },
    "single": {"alone_small": 1.0, "alone_read_all": 1.0, "prompt_product_all": 1.0},
    "single-lookup": {"guessed_small": 1.2, "guessed_read_all": 1.0, "prompt_product_all": 1.0},
    "single-prefix": {"alone_small": 1.1, "alone_read_all": 1.0, "new_product_all": 1.0},
}  # fmt: skip


def obeying(layers: tuple[int, ...], seed: int = 0, pace: float = 0.0) -> Scenario:
    """Times by the recipes, a little noise, and each task at a pace of its own."""
    random = np.random.default_rng(seed)
    records = []
    for n_layers in layers:
        for i, kind in enumerate(list(KINDS) * 3):
            task: Task = known(n_layers, kind, 100 * seed + i)
            task = replace(task, shape=replace(shape(n_layers), hidden=64 * n_layers))
            part = works.works(task.shape, MACHINE, task.workload)
            day = float(np.exp(random.normal(0, pace)))
            for arm, recipe in RECIPES.items():
                seconds = sum(constant * part[name] for name, constant in recipe.items())
                seconds *= day * float(np.exp(random.normal(0, 0.03)))
                parts = task.parts(f"model {n_layers}", "box")
                outcome = {"latency_s": seconds}
                name = f"{n_layers}/{i}"
                records.append(Record(name, arm, Status.OK, **parts, outcome=outcome))
    return to_scenario(records, "obeying", tuple(RECIPES), DEFAULT.name).scenario


def gap(learner, train: Scenario, asked: Scenario) -> float:
    chosen = learner.fit(train).choose(asked.features, asked.applicable, ())
    loss = asked.loss
    single = loss[:, best_first(train.loss)[0]].mean()
    mine = np.take_along_axis(loss, chosen[:, None], 1).mean()
    return float((single - mine) / (single - loss.min(1).mean()))


@pytest.mark.parametrize("pace", [0.0, 0.4])
def test_a_law_holds_for_a_larger_model_than_any_measured(pace: float):
    train, larger = obeying((2, 3, 4, 6), pace=pace), obeying((16,), seed=1, pace=pace)
    law = gap(Law(FEW), train, larger)
    assert law > 0.8
    assert law > gap(Forest(FEW), train, larger)


def test_constants_come_back_whatever_the_days_pace():
    train = obeying((2, 3, 4, 6), pace=0.8)
    lesson = Lesson.of(train)
    constants = Law()._constants(lesson.works, train)
    said = np.log(lesson.works @ constants)
    missed = (said - np.median(said, 1)[:, None]) - lesson.relative
    assert np.abs(missed - np.median(missed, 1)[:, None]).mean() < 0.04
    names = list(compress(train.feature_names, train.is_work))
    for arm, column in zip(train.arms, constants.T, strict=True):
        assert {name for name, one in zip(names, column, strict=True) if one > 1e-9} <= set(
            filter(works.needed(arm), names)
        )


def test_what_a_law_says_is_the_loss_relative_to_the_single_best():
    train, fresh = obeying((2, 3, 4, 6)), obeying((4,), seed=1)
    fitted = Law(FEW).fit(train)
    estimate = fitted.estimate(fresh.features)
    single = fitted.order[0]
    assert np.abs(estimate.mean[:, single]).max() < 1e-9
    assert (estimate.sd >= 0).all()
    assert np.abs(estimate.mean - (fresh.loss - fresh.loss[:, [single]])).mean() < 0.1


def test_a_failed_run_is_no_time_but_is_learnt_from():
    train = obeying((2, 3, 4, 6))
    status = train.status.copy()
    at = train.arms.index("single-lookup")
    large = train.features[:, train.feature_names.index("model.log_n_layers")] > 1.5
    status[large, at] = Status.MEMOUT
    told = Law(FEW).fit(replace(train, status=status)).estimate(train.features)
    assert told.mean[large, at].min() > told.mean[~large, at].max()


def test_an_arm_with_too_few_runs_is_left_to_the_forest():
    train = obeying((2, 3, 4, 6))
    status = train.status.copy()
    at = train.arms.index("single-lookup")
    status[5:, at] = Status.MISSING
    few = replace(train, status=status)
    estimate = Law(FEW).fit(few).estimate(train.features)
    assert np.isfinite(estimate.mean).all()
    status[:, at] = Status.MISSING
    never = Law(FEW).fit(replace(train, status=status))
    assert np.isnan(never.estimate(train.features).mean[:, at]).all()
    assert at not in set(never.choose(train.features, train.applicable, ()))


def test_a_table_that_tells_no_work_is_refused():
    with pytest.raises(UsageError, match="no parts of the work"):
        Law().fit(decided())
    with pytest.raises(UsageError, match="no parts of the work"):
        Law().fit(replace(obeying((2,)), scale=Scale.RUNTIME, cutoff=10.0))
