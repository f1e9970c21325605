"""One arm for each kind of task, kinds found by k-means (after ISAC; Kadioglu et al., ECAI 2010).

1. Features are standardised on the training rows, then grouped by k-means.
2. An arm's score is its mean relative loss over the training rows of the task's cluster.
3. The number of clusters is taken from `sizes` by inner validation, where ISAC uses g-means.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.cluster import KMeans

from veilrun.tune.scenario import Floats, Scenario
from veilrun.tune.selectors.base import ByScore, Lesson, mean_known
from veilrun.tune.selectors.folds import best_setting


@dataclass(frozen=True, slots=True)
class Clusters:
    """sizes: candidates for the number of clusters."""

    sizes: tuple[int, ...] = (2, 4, 8, 16)
    seed: int = 0

    def fit(self, train: Scenario) -> ByScore:
        def fit(rows: Scenario, size: int) -> ByScore:
            return _fit(rows, size, self.seed)

        return fit(train, best_setting(train, self.sizes, fit, self.seed))


def _fit(train: Scenario, size: int, seed: int) -> ByScore:
    lesson = Lesson.of(train)
    points = lesson.standardised
    size = min(size, len(np.unique(points, axis=0)))
    means = KMeans(size, n_init=5, random_state=seed).fit(points)
    members = (means.labels_ == i for i in range(size))
    table = np.stack([mean_known(lesson.relative[rows], axis=0) for rows in members])

    def score(features: Floats, texts: Sequence[str]) -> Floats:
        cluster = means.predict(lesson.preparation.standardise(features))
        return np.asarray(table[cluster])

    return ByScore(score, lesson.order)
