"""How good a selector is on tasks, models or machines it has not seen.

1. Outer folds: the scenario's own ("folds"), ten random ones ("tasks"), or one for each word of a
   group ("model", "machine"). A selector learns from the other folds only; whatever it tunes, it
   tunes inside them, on inner folds of the same kind: of whole groups, where groups are held out
   (`Scenario.folds` of the rows it is given), else of rows at random, as a table's own folds are.
2. Every held-out task gets one arm, and is charged for it and, on runtimes, for its features.
3. Four references go along: "single best" (found on the same training rows), "oracle", "random"
   (the expected loss of a drawn arm) and, where the table names one, "default".

Closed gap: (single best - selector) / (single best - oracle), of mean losses over all held-out
tasks: 1 is the oracle, 0 the single best arm, below 0 worse than not selecting at all. Regret,
task by task: LATENCY, time over the oracle's less 1; RUNTIME, seconds (PAR10) and QUALITY, quality
above the oracle's loss. Intervals: 95 %, from 2,000 bootstrap resamples of tasks, or of whole
groups where groups are held out.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from sklearn.metrics import f1_score

from veilrun.errors import UsageError
from veilrun.tune.scenario import Bools, Floats, Ints, Scale, Scenario
from veilrun.tune.selectors.base import Selector
from veilrun.tune.selectors.charge import charged
from veilrun.tune.selectors.constant import Default, SingleBest, random_loss
from veilrun.tune.selectors.folds import at_random, by_word

N_RANDOM_FOLDS: Final = 10
N_RESAMPLES: Final = 2000
_FALSE_ALARM: Final = 0.05
REFERENCES: Final = ("single best", "oracle", "random", "default")
_SEED: Final = 0
"""Of folds and resamples: the same table gives the same figures; nothing here is a secret."""

Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class FoldScore:
    """One held-out fold. worse_by: mean loss above the single best arm's, with its 95 % interval.

    is_worse: it is above 0 by more than the noise of which tasks are in the fold. All folds of one
    evaluation together raise a false alarm once in twenty times; each alone would do so among ten
    folds once in five, so the line is drawn at 5 % / folds (Bonferroni).
    """

    fold: str
    n_tasks: int
    worse_by: float
    interval: Interval
    is_worse: bool


@dataclass(frozen=True, slots=True)
class Score:
    """One selector over all held-out tasks. nan: not defined here.

    accuracy, f1: how often the arm is the best (as good counts), and F1 weighted by arm. speed_up:
    the default arm's time over the selector's, geometric mean. chosen, regret: task by task, in the
    evaluation's order; chosen is empty for "random".
    """

    name: str
    mean_loss: float
    closed_gap: float
    closed_gap_interval: Interval
    mean_regret: float
    mean_regret_interval: Interval
    max_regret: float
    accuracy: float
    f1: float
    speed_up: float
    folds: tuple[FoldScore, ...]
    chosen: tuple[str, ...]
    regret: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """scores: references first. notes: what fitted selectors say of themselves, (selector, fold)
    -> text.
    """

    scenario: str
    scale: str
    hold_out: str
    tasks: tuple[str, ...]
    arms: tuple[str, ...]
    scores: tuple[Score, ...]
    notes: tuple[tuple[str, str, str], ...]

    def of(self, name: str) -> Score:
        """The score of one selector."""
        found = next((one for one in self.scores if one.name == name), None)
        if found is None:
            raise UsageError(f"{name} was not evaluated")
        return found

    def to_json(self) -> dict[str, Any]:
        """Plain lists and numbers; what is not finite becomes null."""
        plain = _plain(dataclasses.asdict(self))
        return dict(plain)


def evaluate(
    scenario: Scenario,
    selectors: Mapping[str, Selector],
    hold_out: str,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Fit and ask every selector on every fold; see the head of this file.

    hold_out: "folds", "tasks" or the name of a group. Tasks without any measured arm are left out.
    progress: (fits done, fits in all).
    """
    taken = sorted(set(REFERENCES) & set(selectors))
    if taken:
        raise UsageError(f"{', '.join(taken)}: references are evaluated without being named")
    scenario = scenario.rows(np.flatnonzero(scenario.applicable.any(1)))
    folds, names = _outer(scenario, hold_out)
    everyone: dict[str, Selector] = {"single best": SingleBest()}
    if scenario.default is not None:
        everyone["default"] = Default()
    everyone |= selectors
    run = _Run(scenario, folds, names, hold_out not in ("tasks", "folds"))
    notes, done = [], 0
    chosen = {name: np.zeros(len(folds), np.int64) for name in everyone}
    paying = {name: np.zeros(len(folds), np.bool_) for name in everyone}
    for fold, fold_name in enumerate(names):
        asked = folds == fold
        train, test = scenario.rows(~asked), scenario.rows(asked)
        train = replace(train, folds=folds[~asked] if run.by_group else None)
        for name, selector in everyone.items():
            fitted = selector.fit(train)
            chosen[name][asked] = fitted.choose(test.features, test.applicable, test.task_texts)
            paying[name][asked] = fitted.uses_features
            describe = getattr(fitted, "describe", None)
            if describe is not None:
                notes.append((name, fold_name, str(describe())))
            done += 1
            progress(done, len(everyone) * len(names))
    # on the whole table: what a failure costs may depend on all of it
    losses = {name: charged(scenario, chosen[name], paying[name]) for name in everyone}
    return Evaluation(
        scenario=scenario.name,
        scale=scenario.scale.value,
        hold_out=hold_out,
        tasks=scenario.tasks,
        arms=scenario.arms,
        scores=run.scores(losses, chosen),
        notes=tuple(notes),
    )


def _outer(scenario: Scenario, hold_out: str) -> tuple[Ints, tuple[str, ...]]:
    """Folds numbered from 0, and their names."""
    if hold_out == "tasks":
        n_folds = min(N_RANDOM_FOLDS, len(scenario.tasks))
        folds = at_random(len(scenario.tasks), n_folds, _SEED)
        names = tuple(str(i + 1) for i in range(n_folds))
    elif hold_out == "folds":
        if scenario.folds is None:
            raise UsageError(f"{scenario.name} has no folds of its own; hold out tasks or a group")
        given, folds = np.unique(scenario.folds, return_inverse=True)
        names = tuple(str(one) for one in given)
    elif hold_out in scenario.groups:
        folds, names = (
            by_word(scenario.groups[hold_out]),
            tuple(sorted(set(scenario.groups[hold_out]))),
        )
    else:
        known = ", ".join(["tasks", "folds", *scenario.groups])
        raise UsageError(f"{scenario.name} cannot hold out {hold_out!r}; it can: {known}")
    if len(names) < 2:
        raise UsageError(f"{scenario.name}: holding out {hold_out} needs at least two of it")
    return folds.astype(np.int64), names


@dataclass(frozen=True, slots=True, eq=False)
class _Run:
    """Held-out losses to scores. by_group: resample whole folds, not tasks."""

    scenario: Scenario
    folds: Ints
    names: tuple[str, ...]
    by_group: bool

    def scores(self, losses: dict[str, Floats], chosen: dict[str, Ints]) -> tuple[Score, ...]:
        table = self.scenario.loss
        oracle = np.nanmin(table, axis=1)
        best = np.nanargmin(table, axis=1).astype(np.int64)
        every = {
            "single best": losses["single best"],
            "oracle": oracle,
            "random": random_loss(table),
        }
        every |= losses
        picks: dict[str, Ints | None] = {"oracle": best, "random": None, **chosen}
        weights = self._weights()
        return tuple(
            self._score(name, loss, picks[name], every, weights) for name, loss in every.items()
        )

    def _score(
        self,
        name: str,
        loss: Floats,
        chosen: Ints | None,
        every: dict[str, Floats],
        weights: Floats,
    ) -> Score:
        single, oracle = every["single best"], every["oracle"]
        regret = loss - oracle
        speed_up = math.nan
        if self.scenario.scale is Scale.LATENCY:
            regret = np.expm1(regret)
            if "default" in every:
                speed_up = float(np.exp((every["default"] - loss).mean()))
        gaps = _share(weights @ (single - loss), weights @ (single - oracle))
        accuracy, f1 = self._agreement(chosen, oracle)
        return Score(
            name=name,
            mean_loss=float(loss.mean()),
            closed_gap=float(_share((single - loss).mean(), (single - oracle).mean())),
            closed_gap_interval=_interval(gaps),
            mean_regret=float(regret.mean()),
            mean_regret_interval=_interval(weights @ regret / weights.sum(1)),
            max_regret=float(regret.max()),
            accuracy=accuracy,
            f1=f1,
            speed_up=speed_up,
            folds=tuple(self._fold(fold, loss - single) for fold in range(len(self.names))),
            chosen=() if chosen is None else tuple(self.scenario.arms[i] for i in chosen),
            regret=tuple(float(one) for one in regret),
        )

    def _agreement(self, chosen: Ints | None, oracle: Floats) -> tuple[float, float]:
        """Accuracy and weighted F1; an arm as good as the best is the best."""
        if chosen is None:
            return math.nan, math.nan
        table = self.scenario.loss
        equal = np.take_along_axis(table, chosen[:, None], 1)[:, 0] <= oracle
        best = np.where(equal, chosen, np.nanargmin(table, axis=1))
        return float(equal.mean()), float(
            f1_score(best, chosen, average="weighted", zero_division=0)
        )

    def _fold(self, fold: int, worse: Floats) -> FoldScore:
        mine = worse[self.folds == fold]
        drawn = _resamples(len(mine)) @ mine / len(mine)
        is_worse = float(np.quantile(drawn, _FALSE_ALARM / len(self.names))) > 0
        return FoldScore(
            self.names[fold], len(mine), float(mine.mean()), _interval(drawn), is_worse
        )

    def _weights(self) -> Floats:
        """[resamples, n]: how often each task is drawn."""
        if not self.by_group:
            return _resamples(len(self.folds))
        return _resamples(len(self.names))[:, self.folds]


def _resamples(n: int) -> Floats:
    """[resamples, n]: how often each of n things is drawn when n are drawn with replacement."""
    rng = np.random.default_rng(_SEED)
    return rng.multinomial(n, np.full(n, 1 / n), N_RESAMPLES).astype(np.float64)


def _share(part: Any, whole: Any) -> Floats:
    """part / whole; nan where the oracle gains nothing over the single best arm."""
    whole = np.asarray(whole, np.float64)
    some: Bools = whole > 0
    return np.where(some, np.asarray(part) / np.where(some, whole, 1.0), np.nan)


def _interval(values: Floats) -> Interval:
    known = values[~np.isnan(values)]
    if not len(known):
        return math.nan, math.nan
    low, high = np.percentile(known, (2.5, 97.5))
    return float(low), float(high)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
