"""The arm that did best on the most similar tasks (ARGOSMART; Nikolic et al., arXiv 1102.4924).

1. Features are standardised on the training rows; distance is Euclidean.
2. An arm's score is its mean relative loss over the k nearest training tasks that ran it.
3. k is taken from `sizes` by inner validation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from veilrun.tune.scenario import Floats, Scenario
from veilrun.tune.selectors.base import ByScore, Lesson, mean_known
from veilrun.tune.selectors.folds import best_setting


@dataclass(frozen=True, slots=True)
class Neighbours:
    """sizes: candidates for k."""

    sizes: tuple[int, ...] = (1, 3, 5, 10)
    seed: int = 0

    def fit(self, train: Scenario) -> ByScore:
        return _fit(train, best_setting(train, self.sizes, _fit, self.seed))


def _fit(train: Scenario, size: int) -> ByScore:
    lesson = Lesson.of(train)

    def score(features: Floats, texts: Sequence[str]) -> Floats:
        asked = lesson.preparation.standardise(features)
        distance = (lesson.standardised**2).sum(1) - 2 * asked @ lesson.standardised.T
        near = np.argsort(distance, axis=1, kind="stable")[:, :size]
        return mean_known(lesson.relative[near], axis=1)

    return ByScore(score, lesson.order)
