"""What every selector is: settings that fit a table of past runs, then choose arms for new tasks.

    settings (frozen dataclass) --fit(train: Scenario)--> Fitted --choose(...)--> arms, int64 [m]

1. `Lesson` turns training rows into numbers for a learner, using nothing but those rows.
2. A learner scores the arms of new tasks: small is good, nan is "never seen".
3. `pick` takes the applicable arm of the smallest score; ties go to the arm that is better on
   average.

`train.folds`, where it is set, is what inner validation holds out, so that it holds out the same
kind of thing (a model, a machine) as whoever called; see `folds`.

Invariant: an inapplicable arm is never chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from veilrun.errors import UsageError
from veilrun.tune.scenario import Bools, Floats, Ints, Scenario
from veilrun.tune.selectors.features import Preparation


@dataclass(frozen=True, slots=True, eq=False)
class Estimate:
    """What a learner expects of each arm on each task.

    mean: float64 [m, k], the loss relative to the single best arm; nan: nothing is known.
    sd: float64 [m, k], how far the learner's own parts disagree about it.
    """

    mean: Floats
    sd: Floats


class Fitted(Protocol):
    """A selector that has learnt."""

    @property
    def uses_features(self) -> bool:
        """Whether a choice looks at features, so that their cost has to be paid."""

    def choose(self, features: Floats, applicable: Bools, texts: Sequence[str]) -> Ints:
        """One arm a task. features [m, d], applicable [m, k]; texts: m sentences, or none."""


class Selector(Protocol):
    """Settings of a way to choose."""

    def fit(self, train: Scenario) -> Fitted:
        """Learn from these rows only."""


class FittedEstimator(Fitted, Protocol):
    """One that also says what it expects, and how sure it is."""

    @property
    def order(self) -> Ints:
        """The arms, best on average over the training rows first."""

    def estimate(self, features: Floats) -> Estimate:
        """Of every arm on every task, applicable or not."""


class Estimator(Protocol):
    """Settings of one that estimates."""

    def fit(self, train: Scenario) -> FittedEstimator:
        """Learn from these rows only."""


@dataclass(frozen=True, slots=True, eq=False)
class ByScore:
    """Chooses the arm of the smallest score.

    score: (features [m, d], texts) -> float64 [m, k].
    """

    score: Callable[[Floats, Sequence[str]], Floats]
    order: Ints
    uses_features: bool = True

    def choose(self, features: Floats, applicable: Bools, texts: Sequence[str]) -> Ints:
        return pick(self.score(features, texts), applicable, self.order)


@dataclass(frozen=True, slots=True, eq=False)
class ByEstimate:
    """Chooses the arm of the smallest expected loss. predict: features [m, d] -> `Estimate`."""

    predict: Callable[[Floats], Estimate]
    order: Ints
    uses_features: bool = True

    def estimate(self, features: Floats) -> Estimate:
        return self.predict(features)

    def choose(self, features: Floats, applicable: Bools, texts: Sequence[str]) -> Ints:
        return pick(self.predict(features).mean, applicable, self.order)


@dataclass(frozen=True, slots=True, eq=False)
class Lesson:
    """Training rows as learners take them; rows where no arm has a loss are left out.

    inputs, standardised: float64 [n, d'], prepared features; works: float64 [n, w], seconds of each
    part of the work, where the table tells them (`tune.works`). relative: float64 [n, k], loss less
    the row's level; nan: unknown. The level is the median over arms that every row has, so that it
    means the same on all rows (over those the row has, if there is no such arm). The single best
    arm's loss would not do: where it is not applicable, all other arms would look better than
    elsewhere.
    """

    preparation: Preparation
    inputs: Floats
    standardised: Floats
    works: Floats
    relative: Floats
    order: Ints

    @classmethod
    def of(cls, train: Scenario) -> Lesson:
        """Fit the preparation and the order of arms on these rows."""
        loss = train.loss
        known = np.isfinite(loss).any(1)
        if not known.any():
            raise UsageError(f"{train.name}: no row has a measured arm; collect records first")
        loss, features = loss[known], train.features[known]
        preparation = Preparation.fit(features, train.is_work)
        order = best_first(loss)
        relative = loss - level(loss)[:, None]
        return cls(
            preparation,
            preparation.apply(features),
            preparation.standardise(features),
            seconds(features[:, train.is_work]),
            relative,
            order,
        )


def seconds(works: Floats) -> Floats:
    """Of parts of the work, from the logarithms in which tables hold them."""
    return np.exp2(works)


def level(loss: Floats) -> Floats:
    """Of each row, float64 [n]; every row has a number. See `Lesson`."""
    known = np.isfinite(loss)
    common = np.asarray(known.all(0))
    return np.asarray(np.nanmedian(loss[:, common] if common.any() else loss, axis=1))


def best_first(loss: Floats) -> Ints:
    """The arms by mean loss over the rows, best first; arms without a number last.

    The mean is of the loss less its row's mean, which orders a full table as the plain mean does
    and does not favour an arm that ran on easy tasks only.
    """
    known = np.isfinite(loss)
    row = np.where(known, loss, 0.0).sum(1) / np.maximum(known.sum(1), 1)
    total = np.where(known, loss - row[:, None], 0.0).sum(0)
    n_rows = known.sum(0)
    mean = np.where(n_rows > 0, total / np.maximum(n_rows, 1), np.inf)
    return np.argsort(mean, kind="stable").astype(np.int64)


def fallback(applicable: Bools, order: Ints) -> Ints:
    """int64 [m]: the single best arm, or the next best where it is not applicable."""
    return pick(np.zeros(applicable.shape), applicable, order)


def pick(scores: Floats, applicable: Bools, order: Ints) -> Ints:
    """int64 [m]: the applicable arm of the smallest score; ties, and nan, by `order`."""
    lost = np.flatnonzero(~applicable.any(1))
    if len(lost):
        raise UsageError(f"task {lost[0]} has no applicable arm; leave it out")
    ranked = np.where(np.isnan(scores), np.finfo(np.float64).max, scores)
    ranked = np.where(applicable, ranked, np.inf)
    chosen: Ints = order[ranked[:, order].argmin(1)]
    return chosen


def opinion(answers: Floats, order: Ints) -> Estimate:
    """Of a learner's parts, [parts, m, k]: what each says of an arm less what it says of the
    best.
    """
    relative = answers - answers[:, :, order[:1]]
    return Estimate(relative.mean(0), relative.std(0))


def combine(estimates: Sequence[Estimate]) -> Estimate:
    """The opinion of the learners that know an arm: the mean of means; sd: of each and between."""
    means = np.stack([one.mean for one in estimates])
    within = np.stack([one.sd for one in estimates])
    mean = mean_known(means, axis=0)
    between = mean_known((means - mean) ** 2, axis=0)
    return Estimate(mean, np.sqrt(mean_known(within**2, axis=0) + between))


def mean_known(values: Floats, axis: int) -> Floats:
    """The mean of what is not nan along an axis; nan where nothing is."""
    known = ~np.isnan(values)
    total, count = np.where(known, values, 0.0).sum(axis), known.sum(axis)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
