"""What an arm takes, by a law: a sum of parts of the work, times constants found from past runs.

    seconds of an arm on a task  =  sum over parts (constant of arm and part >= 0) x (part, seconds)

1. The constants come from least squares on relative errors, none below zero, pulled towards zero
   by a little (`ridge`), since parts resemble each other (after Ernest; Venkataraman et al., NSDI
   2016). A law made of physics holds for models larger than any measured one, where trees can only
   repeat what they saw.
2. A machine that others use too is slower on one day than on another. So each task has a pace, the
   same for all its arms, which is found together with the constants, in turns.
3. A forest learns what the law misses, from all features and from what the law says; of an arm
   with too few runs for a law, all.

For tables that tell the parts of the work (`tune.works`) and hold latencies.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import compress
from typing import Final

import numpy as np
from scipy.optimize import nnls

from veilrun.errors import UsageError
from veilrun.tune.scenario import Bools, Floats, Scale, Scenario, Status
from veilrun.tune.selectors.base import ByEstimate, Estimate, Lesson, level, opinion, seconds
from veilrun.tune.selectors.forest import grow
from veilrun.tune.selectors.trees import Trees
from veilrun.tune.works import needed

_N_TURNS: Final = 3
_FEWEST: Final = 8
"""Runs of an arm that constants are found from."""


def tells_work(scenario: Scenario) -> bool:
    """Whether a law can be found from this table."""
    return scenario.scale is Scale.LATENCY and bool(scenario.is_work.any())


@dataclass(frozen=True, slots=True)
class Law:
    """trees: of the forest that learns what the law misses. ridge: see the head of this file."""

    trees: Trees = field(default_factory=lambda: Trees(leaf=3))
    ridge: float = 0.3

    def fit(self, train: Scenario) -> ByEstimate:
        """Raises: UsageError: the table does not tell the parts of the work."""
        if not tells_work(train):
            raise UsageError(f"{train.name}: no parts of the work among its features")
        train = train.rows(np.asarray(np.isfinite(train.loss).any(1)))
        lesson = Lesson.of(train)
        constants = self._constants(lesson.works, train)

        def told(features: Floats) -> Floats:
            """What the law says, relative to the task's level; 0 of arms that have none."""
            found = _law(seconds(features[:, train.is_work]), constants)
            return np.nan_to_num(found - level(found)[:, None])

        lawful = told(train.features)
        inputs = np.hstack([lesson.inputs, lawful])
        answer = grow(self.trees, inputs, lesson.relative - lawful)

        def predict(features: Floats) -> Estimate:
            says = told(features)
            inputs = np.hstack([lesson.preparation.apply(features), says])
            return opinion(answer(inputs) + says, lesson.order)

        return ByEstimate(predict, lesson.order)

    def _constants(self, works: Floats, train: Scenario) -> Floats:
        """float64 [w, k]; nan for an arm with too few runs."""
        times = np.where(train.status == Status.OK, train.results, np.nan)
        names = list(compress(train.feature_names, train.is_work))
        may = np.array([list(map(needed(arm), names)) for arm in train.arms])
        for _ in range(_N_TURNS):
            constants = self._of_arms(works, times, may)
            pace = np.nanmedian(np.log(times) - _law(works, constants), axis=1)
            times = times / np.exp(pace)[:, None]
        return self._of_arms(works, times, may)

    def _of_arms(self, works: Floats, times: Floats, may: Bools) -> Floats:
        columns = zip(times.T, may, strict=True)
        return np.stack([self._of_arm(works * parts, column) for column, parts in columns], 1)

    def _of_arm(self, works: Floats, times: Floats) -> Floats:
        ran = np.isfinite(times)
        if ran.sum() < _FEWEST:
            return np.full(works.shape[1], np.nan)
        shares = works[ran] / times[ran, None]
        scale = np.where(shares.mean(0) > 0, shares.mean(0), 1.0)
        n_parts = len(scale)
        pulled = np.vstack([shares / scale, self.ridge * np.eye(n_parts)])
        wanted = np.concatenate([np.ones(len(shares)), np.zeros(n_parts)])
        return np.asarray(nnls(pulled, wanted)[0] / scale)


def _law(works: Floats, constants: Floats) -> Floats:
    """Logarithms of seconds, [m, k]."""
    return np.asarray(np.log(np.maximum(works @ constants, _LEAST_S)))


_LEAST_S: Final = 1e-9
