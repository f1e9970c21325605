"""Our selector: learners and a guard, chosen by validation inside the training rows.

1. Each learner estimates every arm's loss on inner folds it has not seen. Inner folds hold out
   what the caller's folds hold out (`Scenario.folds`), so that the guard is tuned on the right
   kind of surprise.
2. Candidates: the mean of all learners and each alone, behind each threshold of `guard`. They are
   few, as each is one more chance to be lucky.
3. The mean of all, with no threshold, is taken unless another candidate saves more by more than the
   standard error of the difference: what is chosen for being the luckiest of many disappoints.
4. If that saves no more than `caution` standard errors over the single best arm, the answer is
   always the single best arm: what cannot be told from luck is not acted upon.
5. The learners taken are fitted again, on all training rows.

Why law and pairwise: the one knows what serving is made of, and holds for models unlike those
measured; the other looks only at which of two arms is better and by how much it matters. A table
that tells no parts of the work gets a forest in the law's place.

Nothing fitted is ever stored: settings and the verdict of steps 3 and 4 are a small JSON, and
`refit` brings the selector back from the table in one fit a learner.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from veilrun.errors import DecodeError, UsageError
from veilrun.tune.guard import Trial, candidates, guarded
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
from veilrun.tune.selectors.law import Law, tells_work
from veilrun.tune.selectors.pairwise import Pairwise
from veilrun.tune.selectors.trees import Trees

LEARNERS: Final = ("law", "forest", "boosting", "pairwise")


@dataclass(frozen=True, slots=True)
class MetaSelector:
    """learners: names out of `LEARNERS`. Of law and forest, the one steps aside where a table tells
    no parts of the work, the other where it does. n_trees: of an arm's forest; a pair's has half.
    caution: standard errors by which a gain must exceed 0; 2 is wrong one time in forty when there
    is no gain."""

    learners: tuple[str, ...] = ("law", "forest", "pairwise")
    n_trees: int = 90
    caution: float = 2.0
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
        """Steps 1 to 4."""
        names = self._of_use(train)
        blends = list(dict.fromkeys([names, *((name,) for name in names)]))
        tried = candidates(self._built(names), blends, train, self.seed)
        if not tried:
            return Trial()
        best = max(tried, key=lambda one: one.trial().gain)
        verdict = (best if best.beats(tried[0]) else tried[0]).trial()
        return verdict if verdict.gain > self.caution * verdict.error else Trial()

    def _of_use(self, train: Scenario) -> tuple[str, ...]:
        """The learners, without a law that cannot be found or a forest that one stands in for."""
        without = "law" if not tells_work(train) else "forest" if "law" in self.learners else ""
        return tuple(name for name in self.learners if name != without) or self.learners

    def refit(self, train: Scenario, verdict: Trial) -> FittedMeta:
        """Step 5."""
        members = tuple(one.fit(train) for one in self._built(verdict.members).values())
        return FittedMeta(verdict, members, best_first(train.loss), train.arms)

    def _built(self, names: Sequence[str]) -> dict[str, Estimator]:
        every: dict[str, Estimator] = {
            "law": Law(Trees(self.n_trees, leaf=3, seed=self.seed)),
            "forest": Forest(Trees(self.n_trees, leaf=5, seed=self.seed)),
            "boosting": Boosting(seed=self.seed),
            "pairwise": Pairwise(Trees(self.n_trees // 2, leaf=5, seed=self.seed)),
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
