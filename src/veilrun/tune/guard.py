"""A learner's choice stands only where its expected gain is worth its doubt.

    gain over the single best arm  >  threshold x sd  ? the learner's arm : the single best arm

The threshold comes from inner cross-validation on training rows: fixed at 0.5 a guard gave away a
third of what a forest had gained on our first table, and without one a forest lost to the single
best arm on OPENML-WEKA-2017.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from veilrun.tune.scenario import Bools, Floats, Ints, Scenario
from veilrun.tune.selectors.base import Estimate, Estimator, combine, fallback, pick
from veilrun.tune.selectors.charge import charged
from veilrun.tune.selectors.folds import inner, inner_splits

THRESHOLDS: Final = (0.0, 0.25, 0.5, 1.0, 2.0)
"""Candidates. Infinity, always the single best arm, is what none of them being good enough
means.
"""


@dataclass(frozen=True, slots=True)
class Trial:
    """What some learners' mean estimate behind one guard saved on held-out training rows.

    members: the learners; none: always the single best arm. gain: in units of loss, a task, over
    the single best arm; error: its standard error.
    """

    members: tuple[str, ...] = ()
    threshold: float = math.inf
    gain: float = 0.0
    error: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """Learners behind a guard, and what they saved: for each inner fold, task by task.

    by_group: a fold holds whole groups, whose tasks rise and fall together.
    """

    members: tuple[str, ...]
    threshold: float
    saved: tuple[Floats, ...]
    by_group: bool

    def trial(self) -> Trial:
        """The savings in two numbers."""
        mean = float(np.concatenate(self.saved).mean())
        return Trial(
            self.members, self.threshold, mean, standard_error(self.saved, by_group=self.by_group)
        )

    def beats(self, other: Candidate) -> bool:
        """Whether it saves more, by more than the standard error of the difference."""
        more = [own - its for own, its in zip(self.saved, other.saved, strict=True)]
        error = standard_error(more, by_group=self.by_group)
        return float(np.concatenate(more).mean()) > error


def guarded(estimate: Estimate, applicable: Bools, order: Ints, threshold: float) -> Ints:
    """int64 [m]: the arm expected to lose least where it stands, else the single best arm."""
    safe = fallback(applicable, order)
    if math.isinf(threshold):
        return safe
    bold = pick(estimate.mean, applicable, order)
    gain = _at(estimate.mean, safe) - _at(estimate.mean, bold)
    return np.where(gain > threshold * _at(estimate.sd, bold), bold, safe)


def candidates(
    learners: Mapping[str, Estimator], blends: Sequence[tuple[str, ...]], train: Scenario, seed: int
) -> list[Candidate]:
    """Every blend behind every threshold, tried on inner folds of the training rows."""
    saved: dict[tuple[tuple[str, ...], float], list[Floats]] = {
        (blend, threshold): [] for blend in blends for threshold in THRESHOLDS
    }
    for seen, asked in inner_splits(train, inner(train, seed)):
        fitted = {name: learner.fit(seen) for name, learner in learners.items()}
        opinions = {name: one.estimate(asked.features) for name, one in fitted.items()}
        order = next(iter(fitted.values())).order
        safe = charged(asked, fallback(asked.applicable, order), uses_features=False)
        for (blend, threshold), savings in saved.items():
            opinion = combine([opinions[name] for name in blend])
            chosen = guarded(opinion, asked.applicable, order, threshold)
            savings.append(safe - charged(asked, chosen, uses_features=True))
    by_group = train.folds is not None
    return [
        Candidate(*what, tuple(savings), by_group) for what, savings in saved.items() if savings
    ]


def standard_error(by_fold: Sequence[Floats], *, by_group: bool) -> float:
    """Of the mean of all values, as if they were independent; by_group: or as if only folds were,
    whichever is larger."""
    values = np.concatenate(by_fold)
    n, n_folds = len(values), len(by_fold)
    if n < 2 or n_folds < 2:
        return math.inf
    over_values = float(values.std(ddof=1)) / math.sqrt(n)
    if not by_group:
        return over_values
    away = np.array([(one - values.mean()).sum() for one in by_fold])
    over_folds = math.sqrt((away**2).sum() * n_folds / (n_folds - 1)) / n
    return max(over_values, over_folds)


def _at(table: Floats, chosen: Ints) -> Floats:
    """[m]: nan (an arm no learner knows) counts as no gain at all."""
    return np.nan_to_num(np.take_along_axis(table, chosen[:, None], 1)[:, 0])
