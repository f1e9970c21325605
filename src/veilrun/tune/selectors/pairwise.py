"""Which of two arms is better, for every pair, mistakes weighed by what they cost (after SATzilla
2011; Xu et al., "Hydra-MIP", RCRA 2011).

1. Only arms of a greedy portfolio enter: those that together leave least loss on the training rows.
   Thirty arms make 435 pairs, most of them between arms that nobody should choose.
2. A forest for each pair learns the sign of the difference, each row weighed by the difference's
   size: a tie teaches nothing, a failure much.
3. A tree's answer (from -1 to 1) times the pair's mean difference is a vote in units of loss. An
   arm's score is minus the mean of its votes against the others. SATzilla counts heads instead;
   votes in units of loss can be averaged with other learners' and guarded.

mean and sd: over trees, of the score less that of the single best arm.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np

from veilrun.tune.scenario import Floats, Scenario
from veilrun.tune.selectors.base import ByEstimate, Estimate, Lesson, opinion
from veilrun.tune.selectors.trees import Trees, each_tree


@dataclass(frozen=True, slots=True)
class Pairwise:
    """trees: of each pair's forest. n_arms: of the portfolio, at most."""

    trees: Trees = field(default_factory=lambda: Trees(n_trees=60))
    n_arms: int = 8

    def fit(self, train: Scenario) -> ByEstimate:
        lesson = Lesson.of(train)
        k = lesson.relative.shape[1]
        arms = portfolio(lesson.relative, int(lesson.order[0]), self.n_arms)
        pairs = [
            (a, b, self._learn(lesson.inputs, lesson.relative[:, b] - lesson.relative[:, a]))
            for a, b in combinations(arms, 2)
        ]

        def predict(features: Floats) -> Estimate:
            inputs = lesson.preparation.apply(features)
            scores = np.full((self.trees.n_trees, len(inputs), k), np.nan)
            scores[:, :, arms] = 0.0
            for a, b, pair in pairs:
                vote = pair.gain * each_tree(pair.forest, inputs)[:, :, 0] if pair else 0.0
                scores[:, :, a] -= vote / len(arms)
                scores[:, :, b] += vote / len(arms)
            return opinion(scores, lesson.order)

        return ByEstimate(predict, lesson.order)

    def _learn(self, inputs: Floats, gains: Floats) -> _Pair | None:
        """gains [n]: what the pair's first arm saves; nan where one of the two did not run."""
        rows = np.isfinite(gains) & (gains != 0)
        if not rows.any():
            return None
        size = np.abs(gains[rows])
        forest = self.trees.grow(inputs[rows], np.sign(gains[rows]), size / size.mean())
        return _Pair(forest, float(size.sum() / np.isfinite(gains).sum()))


@dataclass(frozen=True, slots=True, eq=False)
class _Pair:
    """gain: the mean size of the difference over the rows that ran both."""

    forest: Any
    gain: float


def portfolio(relative: Floats, first: int, n_arms: int) -> list[int]:
    """Arms that complement each other on these rows: `first`, then each that lowers the mean of the
    row-wise best most, until none does."""
    chosen, worst = [first], np.nanmax(relative, axis=1)
    best = np.where(np.isnan(relative[:, first]), worst, relative[:, first])
    while len(chosen) < n_arms:
        left = np.fmin(best[:, None], relative).sum(0)
        arm = int(left.argmin())
        if not left[arm] < best.sum():
            break
        chosen.append(arm)
        best = np.fmin(best, relative[:, arm])
    return chosen
