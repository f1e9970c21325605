"""A data set of measured runs on disk.

    journal.jsonl     every record, as it was measured; collecting goes on from here
    records.parquet   the same, one flat table
    aslib/            the table that selectors learn from, see `aslib`

The last two are made from the first, whole or not at all. A data set that is passed on may do
without its journal.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from veilrun.errors import UsageError
from veilrun.tune import aslib, parquet
from veilrun.tune.arms import ARMS, DEFAULT, VLLM_ARMS
from veilrun.tune.records import Journal, Record, to_scenario
from veilrun.tune.scenario import Scenario

JOURNAL: Final = "journal.jsonl"
PARQUET: Final = "records.parquet"
ASLIB: Final = "aslib"


@dataclass(frozen=True, slots=True)
class Report:
    """What a data set holds. n_by_status: runs by how they ended. left_out: tasks, with reasons."""

    n_records: int
    n_tasks: int
    n_models: int
    n_by_status: dict[str, int]
    left_out: tuple[str, ...]

    def describe(self) -> str:
        """For people."""
        ended = ", ".join(f"{n} {status}" for status, n in self.n_by_status.items())
        lines = [
            f"{self.n_records} records ({ended}); {self.n_tasks} tasks on {self.n_models} models"
        ]
        return "\n".join([*lines, *(f"left out: {one}" for one in self.left_out)])

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "n_records": self.n_records,
            "n_tasks": self.n_tasks,
            "n_models": self.n_models,
            "n_by_status": self.n_by_status,
            "left_out": list(self.left_out),
        }


def write(folder: Path) -> Report:
    """Make the table and the flat file from the journal in `folder`.

    Raises:
        UsageError: no task can be compared, or records contradict each other.
        StorageError: the disk did not take it.
    """
    measured = Journal(folder / JOURNAL).read()
    gathered = to_scenario(measured, folder.resolve().name, _columns(measured), DEFAULT.name)
    aslib.write(folder / ASLIB, gathered.scenario, replace=True)
    parquet.write(folder / PARQUET, measured)
    statuses = Counter(one.status.value for one in measured)
    return Report(
        len(measured),
        len(gathered.scenario.tasks),
        len(set(gathered.scenario.groups["model"])),
        dict(statuses.most_common()),
        gathered.left_out,
    )


def read(folder: Path, *others: Path) -> Scenario:
    """The table of a data set or of a bare ASlib folder; or of several data sets together.

    Raises:
        UsageError: there is no such thing in a folder; DecodeError: a file is not what it should
            be.
    """
    if others:
        together = [one for each in (folder, *others) for one in records(each)]
        columns = _columns(together)
        return to_scenario(together, "together", columns, DEFAULT.name).scenario
    for one in (folder / ASLIB, folder):
        if (one / "description.txt").exists():
            return aslib.read(one)
    raise UsageError(f"{folder} holds no data set: `veilrun tune collect {folder}` makes one")


def records(folder: Path) -> tuple[Record, ...]:
    """All records: from the journal, or from the flat file where there is none.

    Raises:
        UsageError: there is neither; DecodeError: a file is not what it should be.
    """
    if (folder / JOURNAL).exists():
        return Journal(folder / JOURNAL).read()
    if (folder / PARQUET).exists():
        return parquet.read(folder / PARQUET)
    raise UsageError(f"{folder} holds no records: `veilrun tune collect {folder}` makes some")


def _columns(measured: Sequence[Record]) -> tuple[str, ...]:
    """The arms that there are records of, in the order of the catalogue."""
    found = {one.arm for one in measured}
    return tuple(arm.name for arm in (*ARMS, *VLLM_ARMS) if arm.name in found)
