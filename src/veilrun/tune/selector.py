"""Our selector: learners and a guard, chosen by validation inside the training rows.

1. Each learner estimates every arm's loss on inner folds it has not seen. Inner folds hold out
   what the caller's folds hold out (`Scenario.folds`), so that the guard is tuned on the right
   kind of surprise.
2. Candidates: each learner alone and the mean of all, behind each threshold of `guard`. They are
   few, as each is one more chance to be lucky.
3. The candidate with the largest gain over the single best arm wins, if that gain is more than
   `caution` standard errors above 0. Else the answer is always the single best arm: what cannot be
   told from luck is not acted upon. (To rank by gain less error would prefer timid guards, which
   cost: doubt is for the question whether to act at all.)
4. The winner's learners are fitted again, on all training rows.

Why forest and pairwise: the one estimates every arm's loss, the other looks only at which of two
arms is better and by how much it matters; means of unlike learners err less than their members.
Boosting can be named too, but takes eight times as long and was the weaker on our first table of
records.

Nothing fitted is ever stored: settings and the verdict of step 3 are a small JSON, and `refit`
brings the selector back from the table in one fit a learner.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from veilrun.errors import DecodeError, UsageError
from veilrun.tune.guard import Trial, guarded, trials
from veilrun.tune.scenario import Bools, Floats, Ints, Scenario
from veilrun.tune.selectors.base import (
    Estimate,
    Estimator,
    FittedEstimator,
    best_first,
    combine,
    fallback,
)
from veilrun.tune.selectors.boosting import Boosting
from veilrun.tune.selectors.forest import Forest
from veilrun.tune.selectors.pairwise import Pairwise
from veilrun.tune.selectors.trees import Trees

LEARNERS: Final = ("forest", "boosting", "pairwise")


@dataclass(frozen=True, slots=True)
class MetaSelector:
    """learners: names out of `LEARNERS`. n_trees: of an arm's forest; a pair's has a third.
    caution: standard errors by which a gain must exceed 0; 1 is wrong one time in six when there
    is no gain."""

    learners: tuple[str, ...] = ("forest", "pairwise")
    n_trees: int = 150
    caution: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        unknown = set(self.learners) - set(LEARNERS)
        if unknown or not self.learners:
            raise UsageError(f"learners must be some of {', '.join(LEARNERS)}, not {self.learners}")
        if self.n_trees < 3 or not self.caution >= 0:
            raise UsageError("a selector needs at least 3 trees and a caution of 0 or more")

    def fit(self, train: Scenario) -> FittedMeta:
        return self.refit(train, self.judge(train))

    def judge(self, train: Scenario) -> Trial:
        """Steps 1 to 3."""
        alone = [(name,) for name in self.learners]
        blends = alone if len(alone) == 1 else [self.learners, *alone]
        tried = trials(self._built(self.learners), blends, train, self.seed)
        best = max(tried, key=lambda trial: trial.gain, default=Trial())
        return best if best.gain > self.caution * best.error else Trial()

    def refit(self, train: Scenario, verdict: Trial) -> FittedMeta:
        """Step 4."""
        members = tuple(one.fit(train) for one in self._built(verdict.members).values())
        return FittedMeta(verdict, members, best_first(train.loss), train.arms)

    def _built(self, names: Sequence[str]) -> dict[str, Estimator]:
        every: dict[str, Estimator] = {
            "forest": Forest(Trees(self.n_trees, seed=self.seed)),
            "boosting": Boosting(seed=self.seed),
            "pairwise": Pairwise(Trees(self.n_trees // 3, seed=self.seed)),
        }
        return {name: every[name] for name in names}

    def to_json(self) -> dict[str, Any]:
        """For `from_json`."""
        return dataclasses.asdict(self) | {"learners": list(self.learners)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> MetaSelector:
        """Of `to_json`; an unknown or missing field is an error."""
        kinds = {"learners": list, "n_trees": int, "caution": (int, float), "seed": int}
        _check("settings of a selector", value, kinds)
        return cls(
            tuple(value["learners"]), value["n_trees"], float(value["caution"]), value["seed"]
        )


@dataclass(frozen=True, slots=True, eq=False)
class FittedMeta:
    """verdict: what inner validation decided. members: learners fitted on all training rows."""

    verdict: Trial
    members: tuple[FittedEstimator, ...]
    order: Ints
    arms: tuple[str, ...]

    @property
    def uses_features(self) -> bool:
        return bool(self.members)

    def estimate(self, features: Floats) -> Estimate:
        """Zeros where the answer is always the single best arm."""
        if not self.members:
            nothing = np.zeros((len(features), len(self.arms)))
            return Estimate(nothing, nothing)
        return combine([one.estimate(features) for one in self.members])

    def choose(self, features: Floats, applicable: Bools, texts: Sequence[str]) -> Ints:
        if not self.members:
            return fallback(applicable, self.order)
        estimate = self.estimate(features)
        return guarded(estimate, applicable, self.order, self.verdict.threshold)

    def describe(self) -> str:
        """The verdict in a sentence, for people."""
        single = self.arms[self.order[0]]
        if not self.members:
            return f"always {single}: nothing learnt beats it by more than chance on held-out tasks"
        told = self.verdict
        return (
            f"{' + '.join(told.members)}, or {single} where the expected gain is at most "
            f"{told.threshold:g} x its doubt; on held-out training tasks it saves {told.gain:.3g} "
            f"+- {told.error:.2g} a task over always {single}"
        )


def trial_to_json(trial: Trial) -> dict[str, Any]:
    """For `trial_from_json`; an infinite threshold, which JSON has no number for, is null."""
    threshold = None if math.isinf(trial.threshold) else trial.threshold
    return {
        "members": list(trial.members),
        "threshold": threshold,
        "gain": trial.gain,
        "error": trial.error,
    }


def trial_from_json(value: Mapping[str, Any]) -> Trial:
    """Of `trial_to_json`; an unknown or missing field is an error."""
    kinds = {"members": list, "threshold": (float, type(None)), "gain": float, "error": float}
    _check("verdict of a selector", value, kinds)
    members = tuple(value["members"])
    if set(members) - set(LEARNERS) or bool(members) != (value["threshold"] is not None):
        raise DecodeError(f"verdict of a selector: no such learners and guard: {value}", "members")
    threshold = math.inf if value["threshold"] is None else value["threshold"]
    return Trial(members, threshold, value["gain"], value["error"])


def _check(what: str, value: Mapping[str, Any], kinds: Mapping[str, Any]) -> None:
    if set(value) != set(kinds):
        raise DecodeError(f"{what}: fields {sorted(value)}, not {sorted(kinds)}")
    for name, kind in kinds.items():
        if not isinstance(value[name], kind) or isinstance(value[name], bool):
            raise DecodeError(f"{what}: {name} is {value[name]!r}", name)
