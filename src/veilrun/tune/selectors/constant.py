"""Choices that look at no feature: what every selector has to beat.

`SingleBest` takes the arm with the smallest mean loss over the training rows, the next best where
that one is not applicable. `Default` takes the arm that runs when nobody chooses, falling back
likewise. `random_loss` is what a fair die would lose on average.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from veilrun.errors import UsageError
from veilrun.tune.scenario import Floats, Ints, Scenario
from veilrun.tune.selectors.base import ByScore, best_first


@dataclass(frozen=True, slots=True)
class SingleBest:
    """The arm that is best on average."""

    def fit(self, train: Scenario) -> ByScore:
        return _in_order(best_first(train.loss))


@dataclass(frozen=True, slots=True)
class Default:
    """The arm that runs when nobody chooses."""

    def fit(self, train: Scenario) -> ByScore:
        if train.default not in train.arms:
            raise UsageError(f"{train.name}: its table names no default arm")
        first = train.arms.index(train.default)
        order = best_first(train.loss)
        return _in_order(np.array([first, *order[order != first]], dtype=np.int64))


def random_loss(loss: Floats) -> Floats:
    """[n]: the expected loss of an applicable arm drawn at random."""
    known = np.isfinite(loss)
    mean: Floats = np.where(known, loss, 0.0).sum(1) / known.sum(1)
    return mean


def _in_order(order: Ints) -> ByScore:
    def score(features: Floats, texts: Sequence[str]) -> Floats:
        return np.zeros((len(features), len(order)))

    return ByScore(score, order, uses_features=False)
