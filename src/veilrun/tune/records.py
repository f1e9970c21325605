"""Measured runs: what a collector writes down, and how it becomes a table to learn from.

A journal is a text file with a record on each line, in JSON, written to disk before the next run
starts: collecting goes on where it was broken off. A last line without its line end was torn by a
crash and is dropped; damage anywhere else is an error. One process at a time writes a journal.

Rules of `to_scenario`, which decides what may be compared with what:

1. A record of another `VERSION` of the collecting code is an error: its numbers mean other things.
2. The records of one task say the same of its model, machine and workload, or it is an error; then,
   of two records of one task and arm the later counts.
3. A task whose features are called otherwise than those of most tasks is left out: a feature that
   is not there is never made up.
4. A task without a run of the default arm that was ok is left out: nothing to compare with.
5. A run that failed stays in the table as one that failed. An arm that nobody ran is `MISSING`.
6. What is left out is listed with its reason, never dropped in silence.
7. Numbers are features, called `model.x`, `machine.x`, `workload.x`, sorted. Words are not; three
   of them name the groups that an evaluation holds out: the model's name, the machine's name, the
   workload's kind. Results are `latency_s`.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from veilrun.errors import DecodeError, StorageError, UsageError
from veilrun.tune.arms import by_name
from veilrun.tune.scenario import Scale, Scenario, Status

VERSION: Final = 2
"""Of the collecting code. It grows when a number comes to mean something else."""

MEASURE: Final = "latency_s"
"""What tasks are compared by: seconds per request, the mean over requests."""

LABELS: Final = {"model": "name", "machine": "name", "workload": "kind"}
"""The parts that describe a task, and the word in each that names its group."""

Entries = Mapping[str, float | str]
"""What is known of a model, machine or workload: numbers are features, words are labels."""


@dataclass(frozen=True, slots=True)
class Record:
    """One arm on one task, measured.

    task: names a model, machine and workload together.
    model, machine, workload: by name, see `LABELS` for what must be there; `text`: a sentence.
    outcome: `latency_s` if the run was ok, and what else was measured: ttft_p50_s, ttft_p99_s,
        tpot_s, tokens_per_s, cpu_s_per_token, peak_rss_bytes, exact (0 or 1).
    """

    task: str
    arm: str
    status: Status
    model: Entries
    machine: Entries
    workload: Entries
    outcome: Mapping[str, float]
    version: int = VERSION

    def __post_init__(self) -> None:
        _demand_version(self.version, f"{self.arm} on {self.task}")
        if self.status is Status.MISSING:
            raise UsageError(f"{self.arm} on {self.task}: a run that nobody made has no record")
        for part, label in LABELS.items():
            entries = getattr(self, part)
            _demand_finite(entries, f"{self.task}: {part}")
            if not isinstance(entries.get(label), str):
                raise UsageError(f"{self.task}: {part} has no word {label}")
        _demand_finite(self.outcome, f"{self.arm} on {self.task}: outcome")
        if any(isinstance(value, str) for value in self.outcome.values()):
            raise UsageError(f"{self.arm} on {self.task}: a word among the outcomes")
        if self.status is Status.OK and not self.outcome.get(MEASURE, 0) > 0:
            raise UsageError(f"{self.arm} on {self.task} ended well, without {MEASURE} above 0")

    @property
    def features(self) -> dict[str, float]:
        """The numbers that are known before the run, by their names in a table."""
        found = {
            f"{part}.{name}": float(value)
            for part in LABELS
            for name, value in getattr(self, part).items()
            if not isinstance(value, str)
        }
        return dict(sorted(found.items()))

    @property
    def about(self) -> tuple[Entries, ...]:
        """All that is known of the task."""
        return tuple(getattr(self, part) for part in LABELS)

    def describe(self) -> str:
        """The task in sentences, for selectors that read: each part's `text`, or else its name."""
        texts = (
            part.get("text", part[label])
            for part, label in zip(self.about, LABELS.values(), strict=True)
        )
        return "; ".join(map(str, texts))


def to_fields(record: Record) -> dict[str, Any]:
    """A record as JSON has it."""
    parts = {part: dict(getattr(record, part)) for part in (*LABELS, "outcome")}
    head = {"task": record.task, "arm": record.arm, "status": record.status.value}
    return {**head, **parts, "version": record.version}


def from_fields(fields: Any, place: str) -> Record:
    """The record in what a file held; `place` is what messages call it.

    Raises:
        DecodeError: it is no record.
        UsageError: it is one of another version.
    """
    if not isinstance(fields, dict) or set(fields) != set(Record.__dataclass_fields__):
        raise DecodeError(f"{place} is no record: {str(fields)[:80]}")
    parts = [fields[part] for part in (*LABELS, "outcome")]
    task, arm, status = (fields[name] for name in ("task", "arm", "status"))
    if not all(isinstance(word, str) for word in (task, arm, status)) or status not in set(Status):
        raise DecodeError(f"{place}: task, arm or status is not one: {str(fields)[:80]}")
    if not all(isinstance(part, dict) for part in parts):
        raise DecodeError(f"{place}: {', '.join(LABELS)} and outcome hold names and values")
    if not isinstance(fields["version"], int | float):
        raise DecodeError(f"{place}: version is no number")
    _demand_version(fields["version"], f"{place}: {arm} on {task}")
    try:
        return Record(**{**fields, "status": Status(status), "version": VERSION})
    except UsageError as error:  # what a file says is not the caller's fault
        raise DecodeError(f"{place}: {error}") from error


class Journal:
    """The records in one file, in the order in which they were made. See the head of this file.

    Raises:
        DecodeError: a line that is not the last is damaged.
        UsageError: a record of another version of the collecting code, named.
        StorageError: the file cannot be read or written, or another process wrote to it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            content = path.read_bytes() if path.exists() else b""
        except OSError as error:
            raise StorageError(f"cannot read {path}: {error.strerror or error}") from error
        whole, end, _ = content.rpartition(b"\n")
        self._n_bytes = len(whole) + len(end)
        self._n_bytes_found = len(content)  # more than that where the last line was torn
        lines = whole.split(b"\n") if end else []
        self._records = [
            from_fields(_json(line, f"{path}, line {number}"), f"{path}, line {number}")
            for number, line in enumerate(lines, start=1)
        ]
        self._done = {(one.task, one.arm) for one in self._records}

    def has(self, task: str, arm: str) -> bool:
        """Whether the run was made, however it ended."""
        return (task, arm) in self._done

    def read(self) -> tuple[Record, ...]:
        return tuple(self._records)

    def append(self, record: Record) -> None:
        """Add a record; it is on disk when this returns."""
        line = json.dumps(to_fields(record), sort_keys=True).encode() + b"\n"
        try:
            with self._path.open("ab") as file:
                if file.tell() != self._n_bytes_found:
                    raise StorageError(f"{self._path}: another process wrote to it")
                file.truncate(self._n_bytes)
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise StorageError(f"cannot write {self._path}: {error.strerror or error}") from error
        self._n_bytes = self._n_bytes_found = self._n_bytes + len(line)
        self._records.append(record)
        self._done.add((record.task, record.arm))


@dataclass(frozen=True, slots=True)
class Gathering:
    """A table, and what did not come into it: a sentence for each task left out."""

    scenario: Scenario
    left_out: tuple[str, ...]


def to_scenario(
    records: Iterable[Record], name: str, arms: Sequence[str] | None, default: str
) -> Gathering:
    """The table of these records, by the rules at the head of this file.

    arms: the columns, in this order; records of others are not looked at. None: all there are.

    Raises:
        UsageError: records of one task contradict each other; `default` is not among the arms; an
            arm is none of `tune.arms`; no task is left.
    """
    chosen = [one for one in records if arms is None or one.arm in arms]
    columns = tuple(dict.fromkeys(one.arm for one in chosen) if arms is None else arms)
    if default not in columns:
        raise UsageError(f"{name}: no records of the default arm {default}")
    by_task: dict[str, dict[str, Record]] = {}
    for one in chosen:
        runs = by_task.setdefault(one.task, {})
        if any(one.about != other.about for other in runs.values()):
            raise UsageError(f"{name}: two records of {one.task} differ in what they say of it")
        runs[one.arm] = one
    reasons = {**_without_default(by_task, default), **_other_features(by_task)}
    kept = [runs for task, runs in by_task.items() if task not in reasons]
    left_out = tuple(f"{task}: {reasons[task]}" for task in by_task if task in reasons)
    if not kept:
        raise UsageError(f"{name}: no task is left. {'; '.join(left_out[:5])}")
    return Gathering(_table(name, kept, columns, default), left_out)


def _without_default(by_task: Mapping[str, Mapping[str, Record]], default: str) -> dict[str, str]:
    return {
        task: f"no run of the default arm {default} that was ok"
        for task, runs in by_task.items()
        if default not in runs or runs[default].status is not Status.OK
    }


def _other_features(by_task: Mapping[str, Mapping[str, Record]]) -> dict[str, str]:
    """Tasks whose features are called otherwise than those of most; of equals, of the first."""
    names = {task: frozenset(next(iter(of.values())).features) for task, of in by_task.items()}
    counts = Counter(names.values())
    most = max(counts, key=lambda one: counts[one], default=frozenset[str]())
    return {
        task: f"other features than most: it alone has {sorted(own - most)}, "
        f"it lacks {sorted(most - own)}"
        for task, own in names.items()
        if own != most
    }


def _table(
    name: str, tasks: Sequence[Mapping[str, Record]], arms: tuple[str, ...], default: str
) -> Scenario:
    """tasks: the records of each, by arm."""
    results = np.full((len(tasks), len(arms)), np.nan)
    status = np.empty(results.shape, np.object_)
    for i, runs in enumerate(tasks):
        for j, arm in enumerate(arms):
            status[i, j] = runs[arm].status if arm in runs else Status.MISSING
            if status[i, j] is Status.OK:
                results[i, j] = runs[arm].outcome[MEASURE]
    of_task = [runs[default] for runs in tasks]
    return Scenario(
        name=name,
        scale=Scale.LATENCY,
        tasks=tuple(one.task for one in of_task),
        arms=arms,
        results=results,
        status=status,
        feature_names=tuple(of_task[0].features),
        features=np.array([list(one.features.values()) for one in of_task], np.float64),
        groups={
            part: tuple(str(getattr(one, part)[label]) for one in of_task)
            for part, label in LABELS.items()
        },
        task_texts=tuple(one.describe() for one in of_task),
        arm_texts=tuple(by_name(arm).describe() for arm in arms),
        default=default,
    )


def check_machine(scenario: Scenario, features: Mapping[str, float]) -> list[str]:
    """What is unusual about a machine, in sentences, compared with those in a table.

    features: by their names in the table; only `machine.x` are looked at. A number is unusual if
    it is outside the range that the table covers, widened by `WIDENED` at both ends. Those called
    `log_x` are logarithms to base 2: range and sentence are of what they are logarithms of.
    """
    remarks = []
    for at, name in enumerate(scenario.feature_names):
        part, _, short = name.partition(".")
        if part != "machine":
            continue
        if name not in features:
            remarks.append(f"{short} is not known of this machine")
            continue
        own, low, high = (
            float(np.exp2(value) if short.startswith("log_") else value)
            for value in (
                features[name],
                scenario.features[:, at].min(),
                scenario.features[:, at].max(),
            )
        )
        lowest, highest = min(low * WIDENED, low / WIDENED), max(high * WIDENED, high / WIDENED)
        if not lowest <= own <= highest:
            remarks.append(
                f"{short.removeprefix('log_')} {own:.3g} is outside {low:.3g}..{high:.3g}"
            )
    return remarks


WIDENED: Final = 2.0
"""Machines within this factor of those measured are taken to be like them."""


def _json(line: bytes, place: str) -> Any:
    try:
        return json.loads(line, parse_int=float)  # features are float64, whole ones too
    except (ValueError, RecursionError) as error:
        raise DecodeError(f"{place} is not JSON: {error}") from error


def _demand_version(version: float, whose: str) -> None:
    if version != VERSION:
        raise UsageError(
            f"{whose}: recorded by version {version:g} of the collecting code, this is version "
            f"{VERSION}: collect it again, into a new file"
        )


def _demand_finite(entries: Mapping[str, float | str], what: str) -> None:
    for name, value in entries.items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not isinstance(value, str) and not (is_number and math.isfinite(value)):
            raise UsageError(f"{what}: {name} is neither a word nor a finite number: {value}")
