"""Regression forests whose single trees can be asked: the learner below forest, pairwise and
factors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.ensemble import ExtraTreesRegressor

from veilrun.tune.scenario import Floats


@dataclass(frozen=True, slots=True)
class Trees:
    """Extremely randomised trees: each split is the best of one random cut per feature.

    They are smoother than trees with searched cuts, and every tree sees all rows, which counts
    where there are a hundred. All features are tried, as the authors advise for regression (Geurts
    et al., Machine Learning 63, 2006, section 2.1). Leaves are smaller than their five rows: what
    decides which arm is best is often a few tasks, and averaging over trees smooths enough.

    n_trees: more only smooths. leaf: rows in a leaf, at least.
    """

    n_trees: int = 200
    leaf: int = 2
    seed: int = 0

    def grow(self, inputs: Floats, targets: Floats, weights: Floats | None = None) -> Any:
        """inputs [n, d], targets [n] or [n, outputs], weights [n]."""
        forest = ExtraTreesRegressor(
            self.n_trees,
            min_samples_leaf=self.leaf,
            max_features=1.0,
            random_state=self.seed,
            n_jobs=1,
        )
        one = targets.size == len(inputs)
        return forest.fit(inputs.astype(np.float32), targets.ravel() if one else targets, weights)


def each_tree(forest: Any, inputs: Floats) -> Floats:
    """float64 [n_trees, m, outputs]."""
    narrow = inputs.astype(np.float32)
    answers = [tree.tree_.predict(narrow) for tree in forest.estimators_]
    return np.stack([one.reshape(len(inputs), -1) for one in answers])
