"""A table of tasks by arms: what every selector learns from and every evaluation asks.

    loss [n, k]       what one wants small, as a selector sees it; nan: unknown
    status [n, k]     how each run ended; `Status.MISSING` where there was none
    features [n, d]   what is known of a task before any arm runs; nan: unknown

Three scales of loss, after what ASlib distinguishes and what we measure ourselves:

* `RUNTIME`: seconds; a failed run counts `PENALTY` times the cutoff (PAR10).
* `QUALITY`: minus the quality; a failed run counts as the worst quality in the table.
* `LATENCY`: the natural logarithm of seconds, so that tasks of all sizes weigh the same; a failed
  run counts as `PENALTY` times the slowest run of its task that did not fail.

Invariant: the loss is finite wherever the status is neither `MISSING` nor `NOT_APPLICABLE`, and
nan elsewhere; so an arm without a number is never mistaken for a good one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum, StrEnum
from typing import Final

import numpy as np
from numpy.typing import NDArray

from veilrun.errors import UsageError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

WORK: Final = "work_"
"""What names of features begin with that are parts of the work (`part.work_...`)."""

PENALTY: Final = 10.0
"""A failed run costs this many times the cutoff: PAR10, the convention of the field."""


class Scale(Enum):
    """What a number in a table of results is."""

    RUNTIME = "runtime"
    QUALITY = "quality"
    LATENCY = "latency"


class Status(StrEnum):
    """How a run ended, in ASlib's words, and `MISSING`: nobody ran it."""

    OK = "ok"
    TIMEOUT = "timeout"
    MEMOUT = "memout"
    NOT_APPLICABLE = "not_applicable"
    CRASH = "crash"
    OTHER = "other"
    MISSING = "missing"


@dataclass(frozen=True, slots=True, eq=False)
class Scenario:
    """name: for tables. tasks [n], arms [k], feature_names [d]: in the order of the arrays.

    results: float64 [n, k], as measured: seconds or quality; nan where nothing was.
    status: [n, k] of `Status` values.
    cutoff: of a run, in seconds; only of `RUNTIME`.
    feature_cost: float64 [n], seconds that knowing a task's features takes; counted by
        evaluations on `RUNTIME`.
    groups: what tasks may be held out by ("model", "workload", "machine"): name -> one word a task.
    folds: int64 [n], the table's own cross-validation folds, if it has them; of rows to learn from,
        groups that validation holds out whole (a model, a machine).
    texts: each task in a sentence, and each arm, for selectors that read.
    default: the arm that runs when nobody chooses.
    """

    name: str
    scale: Scale
    tasks: tuple[str, ...]
    arms: tuple[str, ...]
    results: Floats
    status: NDArray[np.object_]
    feature_names: tuple[str, ...]
    features: Floats
    cutoff: float | None = None
    feature_cost: Floats | None = None
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    folds: Ints | None = None
    task_texts: tuple[str, ...] = ()
    arm_texts: tuple[str, ...] = ()
    default: str | None = None

    def __post_init__(self) -> None:
        self._check_shapes()
        for what, names in (("task", self.tasks), ("arm", self.arms)):
            if len(set(names)) < len(names):
                raise UsageError(f"{self.name}: a {what} is named twice")
        if self.scale is Scale.RUNTIME and not (self.cutoff and self.cutoff > 0):
            raise UsageError(f"{self.name}: runtimes need a cutoff above 0 seconds")
        measured = self.status == Status.OK
        if not np.isfinite(self.results[measured]).all():
            raise UsageError(f"{self.name}: a run that ended well has no finite result")
        if self.scale is not Scale.QUALITY and (self.results[measured] < 0).any():
            raise UsageError(f"{self.name}: a run took less than no time")

    def _check_shapes(self) -> None:
        n, k, d = len(self.tasks), len(self.arms), len(self.feature_names)
        shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
            "results": (self.results.shape, (n, k)),
            "status": (self.status.shape, (n, k)),
            "features": (self.features.shape, (n, d)),
        }
        shapes |= {f"group {name}": ((len(of),), (n,)) for name, of in self.groups.items()}
        if self.folds is not None:
            shapes["folds"] = (self.folds.shape, (n,))
        if self.feature_cost is not None:
            shapes["feature_cost"] = (self.feature_cost.shape, (n,))
        if self.task_texts:
            shapes["task_texts"] = ((len(self.task_texts),), (n,))
        if self.arm_texts:
            shapes["arm_texts"] = ((len(self.arm_texts),), (k,))
        for what, (found, wanted) in shapes.items():
            if found != wanted:
                raise UsageError(f"{self.name}: {what} has shape {found}, not {wanted}")

    @property
    def is_work(self) -> Bools:
        """[d]: which features are parts of the work, see `tune.works`."""
        parts = (name.partition(".")[2] for name in self.feature_names)
        return np.array([part.startswith(WORK) for part in parts], np.bool_)

    @property
    def applicable(self) -> Bools:
        """[n, k]: where an arm may be chosen. What nobody ran may not: its loss is unknown."""
        absent = (self.status == Status.MISSING) | (self.status == Status.NOT_APPLICABLE)
        return np.asarray(~absent, np.bool_)

    @property
    def loss(self) -> Floats:
        """[n, k], to be made small; see the head of this file. nan where not applicable."""
        ok = self.status == Status.OK
        values = np.where(ok, self.results, np.nan)
        if self.scale is Scale.QUALITY:
            loss = -values
            failed = np.full(len(self.tasks), -np.nanmin(values) if ok.any() else 0.0)
        elif self.scale is Scale.RUNTIME:
            cutoff = self.cutoff or 0.0
            loss = np.where(values >= cutoff, PENALTY * cutoff, values)
            failed = np.full(len(self.tasks), PENALTY * cutoff)
        else:
            loss = np.log(np.maximum(values, _SHORTEST_S))
            slowest = np.where(ok, loss, -np.inf).max(1, initial=-np.inf)
            failed = np.where(np.isfinite(slowest), slowest, 0.0) + np.log(PENALTY)
        loss = np.where(ok, loss, failed[:, None])
        return np.where(self.applicable, loss, np.nan)

    def columns(self, arms: Sequence[str]) -> Scenario:
        """The same table with these arms only, in this order."""
        at = [self.arms.index(arm) for arm in arms]
        return replace(
            self,
            arms=tuple(arms),
            results=self.results[:, at],
            status=self.status[:, at],
            arm_texts=tuple(self.arm_texts[i] for i in at) if self.arm_texts else (),
            default=self.default if self.default in arms else None,
        )

    def rows(self, chosen: Ints | Bools) -> Scenario:
        """The same table with these tasks only, in this order."""
        at = np.flatnonzero(chosen) if chosen.dtype == np.bool_ else chosen
        return replace(
            self,
            tasks=tuple(self.tasks[i] for i in at),
            results=self.results[at],
            status=self.status[at],
            features=self.features[at],
            feature_cost=None if self.feature_cost is None else self.feature_cost[at],
            groups={name: tuple(of[i] for i in at) for name, of in self.groups.items()},
            folds=None if self.folds is None else self.folds[at],
            task_texts=tuple(self.task_texts[i] for i in at) if self.task_texts else (),
        )


_SHORTEST_S: Final = 1e-9
"""A clock that did not move; its logarithm would be minus infinity."""
