"""Low-rank factors of the table, foretold from features (after ALORS; Misir & Sebag, AIJ 244,
2017).

1. Holes of the relative losses are filled with the arm's mean, then refined by the factorisation
   itself.
2. Singular value decomposition: table = rows' factors [n, rank] x arms' factors [rank, k].
3. A forest learns the rows' factors from features; their product with the arms' is the score.

ALORS factorises ranks with CofiRank; the table of losses needs no extra program and keeps sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from veilrun.tune.scenario import Floats, Scenario
from veilrun.tune.selectors.base import ByScore, Lesson, mean_known
from veilrun.tune.selectors.trees import Trees, each_tree

_N_REFINEMENTS: Final = 20
"""Rounds of filling holes from the factors; each halves the change or better on our tables."""


@dataclass(frozen=True, slots=True)
class Factors:
    """rank: of the factorisation. trees: of the forest that foretells rows' factors."""

    rank: int = 5
    trees: Trees = field(default_factory=Trees)

    def fit(self, train: Scenario) -> ByScore:
        lesson = Lesson.of(train)
        never = np.isnan(lesson.relative).all(0)
        centre = np.where(never, 0.0, mean_known(lesson.relative, axis=0))
        rows, arms = _factorise(lesson.relative - centre, self.rank)
        forest = self.trees.grow(lesson.inputs, rows)

        def score(features: Floats, texts: Sequence[str]) -> Floats:
            foretold = each_tree(forest, lesson.preparation.apply(features)).mean(0)
            return np.where(never, np.nan, foretold @ arms + centre)

        return ByScore(score, lesson.order)


def _factorise(table: Floats, rank: int) -> tuple[Floats, Floats]:
    """[n, r], [r, k] with r = rank or the table's smaller side; nan is filled as it goes."""
    holes = np.isnan(table)
    filled = np.where(holes, 0.0, table)
    for _ in range(_N_REFINEMENTS if holes.any() else 1):
        left, sizes, right = np.linalg.svd(filled, full_matrices=False)
        rows, arms = (left * sizes)[:, :rank], right[:rank]
        filled = np.where(holes, rows @ arms, table)
    return rows, arms
