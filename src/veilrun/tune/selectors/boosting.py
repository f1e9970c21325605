"""Gradient boosting per arm, on the loss relative to the task's level (Friedman, 2001).

Several boosts, each with its own random rows and features: mean over them, and sd between them,
which one boost alone would not give. The number of rounds is fixed: early stopping would need rows
to watch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.ensemble import GradientBoostingRegressor

from veilrun.tune.scenario import Floats, Scenario
from veilrun.tune.selectors.base import ByEstimate, Estimate, Lesson, opinion


@dataclass(frozen=True, slots=True)
class Boosting:
    """n_boosts: of each arm. n_rounds, depth, rate, share: of a boost; share of rows a round
    sees.
    """

    n_boosts: int = 4
    n_rounds: int = 80
    depth: int = 3
    rate: float = 0.1
    share: float = 0.5
    seed: int = 0

    def fit(self, train: Scenario) -> ByEstimate:
        lesson = Lesson.of(train)
        known = np.isfinite(lesson.relative)
        boosts = {
            arm: [
                self._boost(lesson.inputs[rows], lesson.relative[rows, arm], i)
                for i in range(self.n_boosts)
            ]
            for arm, rows in enumerate(known.T)
            if rows.sum() > 1
        }

        def predict(features: Floats) -> Estimate:
            inputs = lesson.preparation.apply(features)
            answers = np.full((self.n_boosts, len(inputs), known.shape[1]), np.nan)
            for arm, several in boosts.items():
                answers[:, :, arm] = [one.predict(inputs) for one in several]
            return opinion(answers, lesson.order)

        return ByEstimate(predict, lesson.order)

    def _boost(self, inputs: Floats, targets: Floats, i: int) -> GradientBoostingRegressor:
        boost = GradientBoostingRegressor(
            n_estimators=self.n_rounds,
            max_depth=self.depth,
            learning_rate=self.rate,
            subsample=self.share,
            max_features=1 / 3,
            random_state=self.seed + i,
        )
        return boost.fit(inputs, targets)
