"""A forest that predicts what every arm loses on a task (empirical hardness models; Hutter et al.,
Artificial Intelligence 206, 2014; here relative to the task's level, so that its size drops out).

1. Arms that ran on the same rows share one forest: a leaf is a set of like tasks, on which all
   arms are compared alike. Other arms have forests of their own, on the rows that ran them. Each
   arm's losses are scaled to one spread first, or the worst arms would decide where to split.
2. mean: over trees; sd: between trees, which is large where training tasks are few or contradict.

A failed run counts as `Scenario.loss` says, so the mean is an expected loss, risk of failure
included.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from veilrun.tune.scenario import Floats, Scenario
from veilrun.tune.selectors.base import ByEstimate, Estimate, Lesson, opinion
from veilrun.tune.selectors.trees import Trees, each_tree


@dataclass(frozen=True, slots=True)
class Forest:
    """trees: of each forest."""

    trees: Trees = field(default_factory=Trees)

    def fit(self, train: Scenario) -> ByEstimate:
        lesson = Lesson.of(train)
        answer = grow(self.trees, lesson.inputs, lesson.relative)

        def predict(features: Floats) -> Estimate:
            return opinion(answer(lesson.preparation.apply(features)), lesson.order)

        return ByEstimate(predict, lesson.order)


def grow(trees: Trees, inputs: Floats, targets: Floats) -> Callable[[Floats], Floats]:
    """Learn all arms at once: inputs [n, d], targets [n, k], nan where an arm did not run.

    What comes back answers inputs [m, d] with float64 [trees, m, k].
    """
    known = np.isfinite(targets)
    patterns, pattern_of = np.unique(known, axis=1, return_inverse=True)
    forests = []
    for i, rows in enumerate(patterns.T):
        arms = np.flatnonzero(pattern_of.ravel() == i)
        if rows.any():
            wanted = targets[np.ix_(rows, arms)]
            scale = np.where(wanted.std(0) > 0, wanted.std(0), 1.0)
            forests.append((arms, scale, trees.grow(inputs[rows], wanted / scale)))

    def answer(asked: Floats) -> Floats:
        answers = np.full((trees.n_trees, len(asked), known.shape[1]), np.nan)
        for arms, scale, forest in forests:
            answers[:, :, arms] = each_tree(forest, asked) * scale
        return answers

    return answer
