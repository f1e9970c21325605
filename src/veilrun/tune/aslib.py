"""ASlib folders: tables of results in the form that the research on algorithm selection shares.

    description.txt            what is measured, the cutoff, the arms, the feature steps
    algorithm_runs.arff        instance_id, repetition, algorithm, the measure, runstatus
    feature_values.arff        instance_id, repetition, a column per feature
    feature_runstatus.arff     instance_id, repetition, a column per feature step    (may be absent)
    feature_costs.arff         the same, in seconds                                  (may be absent)
    cv.arff                    instance_id, repetition, fold                         (may be absent)

An instance is a task here, an algorithm an arm. How a folder becomes a table:

1. Of several measures, the first counts; a quality to be made small is stored with its sign turned.
2. A run's number counts if its status is ok, and only then. Of several repetitions, an arm has the
   mean over those that are ok; if none is, the status of the first one listed.
3. A feature is the mean over repetitions, without those where a step that gives it ended other
   than "ok" or "presolved". A task's feature cost is the sum over steps, a missing one counting 0.
4. The folds are those of the first repetition in cv.arff.
5. Instances that nobody ran are left out. Other files (test splits, citations) are not read.

Our own folders hold more, which other readers of ASlib pass over: a key `veilrun` in the
description, task_groups.arff, task_texts.arff (a column of words for each task). As such readers
want a number in every cell, a run that was not ok is written with the cutoff or the worst quality,
and one that nobody made has a row too, with the status "missing".

Source: Bischl et al., "ASlib: A Benchmark Library for Algorithm Selection", AIJ 237 (2016),
arXiv 1506.02465, and its later version 2 with lists in the description.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from veilrun import atomic
from veilrun.errors import DecodeError, UsageError
from veilrun.tune import arff, aslib_description
from veilrun.tune.aslib_description import STEP, Description
from veilrun.tune.scenario import Floats, Ints, Scale, Scenario, Status

_DESCRIPTION: Final = "description.txt"
_RUNS: Final = "algorithm_runs.arff"
_VALUES: Final = "feature_values.arff"
_STATUSES: Final = "feature_runstatus.arff"
_COSTS: Final = "feature_costs.arff"
_FOLDS: Final = "cv.arff"
_GROUPS: Final = "task_groups.arff"
_TEXTS: Final = "task_texts.arff"

_ID: Final = ("instance_id", "repetition")
_REPETITION: Final = 1.0
"""The only one in folders that we write."""


def read(folder: Path) -> Scenario:
    """The table in an ASlib folder, see above.

    Raises:
        UsageError: a file that must be there is not.
        DecodeError: a file is not what it should be, or two of them contradict each other.
    """
    about = aslib_description.read(folder / _DESCRIPTION)
    features = _Sheet.read(folder / _VALUES)
    runs = _runs(folder / _RUNS, about, {task for task, _ in features.rows})
    tasks = tuple(dict.fromkeys(task for task, _ in features.rows if task in runs))
    if not tasks:
        raise DecodeError(f"{folder}: no instance has both features ({_VALUES}) and runs ({_RUNS})")
    arms = tuple(dict.fromkeys([*about.arms, *(arm for of in runs.values() for arm in of)]))
    results = np.full((len(tasks), len(arms)), np.nan)
    status = np.empty(results.shape, np.object_)
    for i, task in enumerate(tasks):
        for j, arm in enumerate(arms):
            status[i, j], results[i, j] = _over_repetitions(runs[task].get(arm, {}))
    groups, texts = _words(folder / _GROUPS, tasks), _words(folder / _TEXTS, tasks)
    try:
        return Scenario(
            name=about.name,
            scale=about.scale,
            tasks=tasks,
            arms=arms,
            results=results,
            status=status,
            feature_names=features.names,
            features=_features(features, folder / _STATUSES, about, tasks),
            cutoff=about.cutoff,
            feature_cost=_feature_cost(folder / _COSTS, tasks),
            groups=groups,
            folds=_folds(folder / _FOLDS, tasks),
            task_texts=texts.get("text", ()),
            arm_texts=about.arm_texts,
            default=about.default,
        )
    except UsageError as error:  # whoever wrote the folder is at fault, not who reads it
        raise DecodeError(f"{folder}: {error}") from error


def write(folder: Path, scenario: Scenario, *, replace: bool = False) -> None:
    """Write a table as an ASlib folder, whole or not at all; `read` gives it back as it was.

    Except for numbers of runs that were not ok: these are not kept.

    replace: an existing folder gives way.

    Raises:
        UsageError: the folder exists; a column is named twice or as ASlib's own; no task, no arm.
        StorageError: the disk did not take it.
    """
    if not scenario.tasks or not scenario.arms:
        raise UsageError(f"{scenario.name} has no task or no arm: there is nothing to write")
    with atomic.new_folder(folder, replace=replace) as new:
        cutoff = aslib_description.write(new / _DESCRIPTION, scenario)
        _write_runs(new / _RUNS, scenario, cutoff)
        _write_sheet(new / _VALUES, scenario, scenario.feature_names, scenario.features.tolist())
        steps = [("ok",)] * len(scenario.tasks)
        _write_sheet(new / _STATUSES, scenario, [STEP], steps, kind=_FEATURE_ENDS)
        if scenario.feature_cost is not None:
            _write_sheet(new / _COSTS, scenario, [STEP], scenario.feature_cost[:, None].tolist())
        if scenario.folds is not None:
            _write_sheet(
                new / _FOLDS,
                scenario,
                ["fold"],
                scenario.folds[:, None].astype(np.float64).tolist(),
            )
        if scenario.groups:
            words = list(zip(*scenario.groups.values(), strict=True))
            _write_sheet(new / _GROUPS, scenario, list(scenario.groups), words, kind="string")
        if scenario.task_texts:
            texts = [(text,) for text in scenario.task_texts]
            _write_sheet(new / _TEXTS, scenario, ["text"], texts, kind="string")


def _write_runs(path: Path, scenario: Scenario, cutoff: float) -> None:
    ok = scenario.status == Status.OK
    worst = cutoff
    if scenario.scale is Scale.QUALITY:
        worst = float(scenario.results[ok].min()) if ok.any() else 0.0
    numbers = np.where(ok, scenario.results, worst)
    rows = tuple(
        (task, _REPETITION, arm, float(numbers[i, j]), str(scenario.status[i, j]))
        for i, task in enumerate(scenario.tasks)
        for j, arm in enumerate(scenario.arms)
    )
    measure = aslib_description.MEASURES[scenario.scale]
    names = (*_ID, "algorithm", measure, "runstatus")
    kinds: tuple[arff.Kind, ...] = (
        "string",
        "numeric",
        "string",
        "numeric",
        tuple(map(str, Status)),
    )
    arff.write(path, f"ALGORITHM_RUNS_{scenario.name}", arff.Table(names, kinds, rows))


def _write_sheet(
    path: Path,
    scenario: Scenario,
    names: Sequence[str],
    values: Sequence[Sequence[arff.Value]],
    kind: arff.Kind = "numeric",
) -> None:
    """A row for each task: `values` [n][len(names)], nan as missing."""
    rows = tuple(
        (task, _REPETITION, *(None if one != one else one for one in row))
        for task, row in zip(scenario.tasks, values, strict=True)
    )
    kinds: tuple[arff.Kind, ...] = ("string", "numeric", *(kind for _ in names))
    relation = f"{path.stem.upper()}_{scenario.name}"
    arff.write(path, relation, arff.Table((*_ID, *names), kinds, rows))


_FEATURE_ENDS: Final = ("ok", "timeout", "memout", "presolved", "crash", "other", "unknown")


@dataclass(frozen=True, slots=True)
class _Sheet:
    """A file with a row for each repetition of an instance: names and values of further columns."""

    path: Path
    names: tuple[str, ...]
    rows: Mapping[tuple[str, float], tuple[arff.Value, ...]]

    @classmethod
    def read(cls, path: Path) -> _Sheet:
        table = arff.read(path)
        _demand_columns(path, table, _ID)
        rows: dict[tuple[str, float], tuple[arff.Value, ...]] = {}
        for line, (task, repetition, *values) in zip(table.lines, table.rows, strict=True):
            if not isinstance(task, str) or not isinstance(repetition, float):
                raise DecodeError(f"{path}, line {line}: no instance's name or no repetition")
            earlier = rows.setdefault((task, repetition), tuple(values))
            if str(earlier) != str(tuple(values)):  # by text: nan equals nan
                raise DecodeError(f"{path}, line {line}: {task} differs from an earlier line")
        return cls(path, table.names[len(_ID) :], rows)

    def numbers(self) -> dict[str, list[Floats]]:
        """For each instance, its repetitions' values; nan: missing."""
        found: dict[str, list[Floats]] = {}
        for (task, _), values in self.rows.items():
            if any(isinstance(one, str) for one in values):
                raise DecodeError(f"{self.path}: {task} has a value that is no number")
            found.setdefault(task, []).append(np.array(values, np.float64))
        return found


def _demand_columns(path: Path, table: arff.Table, wanted: Sequence[str]) -> None:
    if tuple(name.lower() for name in table.names[: len(wanted)]) != tuple(wanted):
        raise DecodeError(f"{path} does not begin with the columns {', '.join(wanted)}")


_Run = tuple[Status, float]


def _runs(
    path: Path, about: Description, known: set[str]
) -> dict[str, dict[str, dict[float, _Run]]]:
    """Every run by task, arm and repetition."""
    table = arff.read(path)
    _demand_columns(path, table, (*_ID, "algorithm"))
    columns = [name.lower() for name in table.names]
    for name in (about.measure.lower(), "runstatus"):
        if name not in columns[len(_ID) + 1 :]:
            raise DecodeError(f"{path} has no column {name}")
    at, at_status = columns.index(about.measure.lower()), columns.index("runstatus")
    runs: dict[str, dict[str, dict[float, _Run]]] = {}
    for line, row in zip(table.lines, table.rows, strict=True):
        place = f"{path}, line {line}"
        task, repetition, arm = row[:3]
        if not (isinstance(task, str) and isinstance(repetition, float) and isinstance(arm, str)):
            raise DecodeError(f"{place}: instance and algorithm are names, repetition is a number")
        if task not in known:
            raise DecodeError(f"{place}: {task} is not in {_VALUES}")
        run = _run(row[at], row[at_status], about, place)
        earlier = runs.setdefault(task, {}).setdefault(arm, {}).setdefault(repetition, run)
        if str(earlier) != str(run):
            raise DecodeError(f"{place}: another run of {arm} on {task} in this repetition")
    return runs


def _run(value: arff.Value, status: arff.Value, about: Description, place: str) -> _Run:
    try:
        how = Status(str(status).lower())
    except ValueError as error:
        raise DecodeError(f"{place}: runstatus is {str(status)[:40]}") from error
    if how is not Status.OK:
        return how, math.nan
    is_time = about.scale is not Scale.QUALITY
    if not isinstance(value, float) or not math.isfinite(value) or (is_time and value < 0):
        raise DecodeError(f"{place}: a run that is ok has {about.measure} {value}")
    return how, about.sign * value


def _over_repetitions(runs: Mapping[float, _Run]) -> _Run:
    values = [value for status, value in runs.values() if status is Status.OK]
    if values:
        return Status.OK, math.fsum(values) / len(values)
    return next(iter(runs.values()), (Status.MISSING, math.nan))


def _features(sheet: _Sheet, path: Path, about: Description, tasks: Sequence[str]) -> Floats:
    """[n, d] the mean over repetitions of what came from steps that ended well; nan: nothing."""
    spoilt: dict[tuple[str, float], set[str]] = {}
    if path.exists():
        statuses = _Sheet.read(path)
        unknown = set(statuses.names) - set(about.steps)
        if unknown:
            raise DecodeError(f"{path}: {_DESCRIPTION} has no step {', '.join(sorted(unknown))}")
        for key, ends in statuses.rows.items():
            bad = [
                step
                for step, end in zip(statuses.names, ends, strict=True)
                if str(end).lower() not in ("ok", "presolved")
            ]
            spoilt[key] = {name for step in bad for name in about.steps[step]}
    kept = {
        key: tuple(
            None if name in spoilt.get(key, ()) else value
            for name, value in zip(sheet.names, values, strict=True)
        )
        for key, values in sheet.rows.items()
    }
    numbers = _Sheet(sheet.path, sheet.names, kept).numbers()
    return np.stack([_mean(numbers[task]) for task in tasks])


def _mean(repetitions: Sequence[Floats]) -> Floats:
    """Of each column, over the repetitions that have a value; nan if none has."""
    stacked = np.stack(repetitions)
    n_known = (~np.isnan(stacked)).sum(0)
    mean: Floats = np.where(n_known > 0, np.nansum(stacked, 0) / np.maximum(n_known, 1), np.nan)
    return mean


def _feature_cost(path: Path, tasks: Sequence[str]) -> Floats | None:
    if not path.exists():
        return None
    numbers = _Sheet.read(path).numbers()
    _demand_tasks(path, numbers, tasks)
    return np.array([np.mean([np.nansum(one) for one in numbers[task]]) for task in tasks])


def _folds(path: Path, tasks: Sequence[str]) -> Ints | None:
    if not path.exists():
        return None
    sheet = _Sheet.read(path)
    if not sheet.rows or len(sheet.names) != 1:
        raise DecodeError(f"{path} has no rows of an instance, a repetition and a fold")
    first = min(repetition for _, repetition in sheet.rows)
    found = {
        task: fold for (task, repetition), (fold,) in sheet.rows.items() if repetition == first
    }
    _demand_tasks(path, found, tasks)
    folds = [found[task] for task in tasks]
    if not all(isinstance(fold, float) and fold.is_integer() for fold in folds):
        raise DecodeError(f"{path}: a fold is not a whole number")
    return np.array(folds).astype(np.int64)


def _words(path: Path, tasks: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Columns of words for each task, by name; none if there is no such file."""
    if not path.exists():
        return {}
    sheet = _Sheet.read(path)
    rows = {task: values for (task, _), values in sheet.rows.items()}
    _demand_tasks(path, rows, tasks)
    return {
        name: tuple(str(rows[task][at]) for task in tasks) for at, name in enumerate(sheet.names)
    }


def _demand_tasks(path: Path, found: Mapping[Any, Any], tasks: Sequence[str]) -> None:
    missing = [task for task in tasks if task not in found]
    if missing:
        raise DecodeError(f"{path} has no row for {', '.join(missing[:5])}")
