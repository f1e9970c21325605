"""Collecting: every arm on every task, whole tasks only, and on from where it was broken off."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from veilrun.errors import RefusedError
from veilrun.node import collecting
from veilrun.node.collecting import Collection, collect, tasks
from veilrun.node.trials import Trials
from veilrun.tune import dataset
from veilrun.tune.arms import DEFAULT, by_name
from veilrun.tune.machine import Machine
from veilrun.tune.records import Journal
from veilrun.tune.scenario import Status
from veilrun.tune.specimens import SPECIMENS, Specimen
from veilrun.tune.workload import KINDS

TINY = Specimen("tiny", "llama", 2, 64, 4, 2, 512, draft_accuracy=0.9)
PLAIN = replace(TINY, name="plain", draft_accuracy=None)
HOW = Collection(Machine(2, 60.0, 110.0, 9.0, 2.0, 1.5), "box", can_compile=False)
SOME = ("continuous-16", "single", "single-draft", "single-compiled", "static-16-int8")


@pytest.fixture(autouse=True)
def few_arms(monkeypatch):
    monkeypatch.setattr(collecting, "ARMS", tuple(by_name(name) for name in SOME))
    monkeypatch.setattr(collecting, "_ENOUGH_S", 0.0)


def run(journal: Journal, specimens=(TINY,), n_each: int = 2) -> list[tuple[str, int]]:
    told = []
    wanted = list(tasks(specimens, n_each, 0, (1, 2)))
    asyncio.run(collect(wanted, journal, HOW, lambda task, n: told.append((task.name, n))))
    return told


def test_tasks_follow_from_the_seed_and_go_through_all_kinds():
    first = list(tasks(SPECIMENS, 9, 0, (1, 5)))
    assert first == list(tasks(SPECIMENS, 9, 0, (1, 5)))
    assert first != list(tasks(SPECIMENS, 9, 1, (1, 5)))
    assert len({task.name for task in first}) == 9 * len(SPECIMENS)
    assert {task.workload.kind for task in first[:9]} == set(KINDS)


def test_a_journal_fills_task_by_task_and_goes_on(tmp_path: Path):
    path = tmp_path / dataset.JOURNAL
    told = run(Journal(path), (TINY, PLAIN), 1)
    assert [n for _, n in told] == [4, 4]  # no compiled arm: these specimens ask for none
    by_arm = {(one.model["name"], one.arm): one for one in Journal(path).read()}
    assert by_arm["tiny", "single-draft"].status is Status.OK
    assert by_arm["plain", "single-draft"].status is Status.NOT_APPLICABLE
    assert by_arm["tiny", "single"].outcome["exact"] == 1.0
    assert by_arm["tiny", "single"].features == by_arm["tiny", "static-16-int8"].features
    assert by_arm["tiny", "single"].workload["agreement"] > 0.5
    assert by_arm["plain", "single"].workload["agreement"] == 0
    again = run(Journal(path), (TINY, PLAIN), 2)
    assert [n for _, n in again] == [0, 0, 4, 4] or [n for _, n in again].count(0) == 2
    assert dataset.write(tmp_path).n_tasks == 4


def test_what_a_crash_left_of_a_task_is_told_apart(tmp_path: Path):
    path = tmp_path / dataset.JOURNAL
    run(Journal(path), n_each=1)
    lines = path.read_bytes().splitlines(keepends=True)
    assert b'"arm": "continuous-16"' in lines[-1]  # last: without it the task is not done
    path.write_bytes(b"".join(lines[:2]))
    assert [n for _, n in run(Journal(path), n_each=1)] == [4]
    assert [n for _, n in run(Journal(path), n_each=1)] == [0]
    report = dataset.write(tmp_path)
    assert report.n_tasks == 1
    assert len(report.left_out) == 1


def test_failures_are_records(tmp_path: Path, monkeypatch):
    real = Trials.run

    async def fails_on_single(self, arm, *given):
        return Status.MEMOUT if arm.name == "single" else await real(self, arm, *given)

    monkeypatch.setattr(Trials, "run", fails_on_single)
    journal = Journal(tmp_path / dataset.JOURNAL)
    run(journal, n_each=1)
    failed = next(one for one in journal.read() if one.arm == "single")
    assert (failed.status, failed.outcome) == (Status.MEMOUT, {})


def test_a_task_without_the_default_arm_ends_the_work(tmp_path: Path, monkeypatch):
    async def fails(self, *given):
        return Status.TIMEOUT

    monkeypatch.setattr(Trials, "run", fails)
    with pytest.raises(RefusedError, match="default arm ended with timeout"):
        run(Journal(tmp_path / dataset.JOURNAL))


def test_time_goes_where_it_decides(tmp_path: Path, monkeypatch):
    asked: list[str] = []
    real = Trials.run

    async def slowed(self, arm, *given):
        asked.append(arm.name)
        outcome = await real(self, arm, *given)
        return replace(outcome, latency_s=9.0) if arm.name == "single" else outcome

    monkeypatch.setattr(Trials, "run", slowed)
    run(Journal(tmp_path / dataset.JOURNAL), (PLAIN,), 1)
    assert asked.count("single") == 2  # a warm-up, and one round
    assert asked.count(DEFAULT.name) <= len(collecting._ROUNDS) + 1
    asked.clear()
    monkeypatch.setattr(collecting, "ARMS", (DEFAULT,))
    monkeypatch.setattr(collecting, "_ENOUGH_S", 1e9)
    run(Journal(tmp_path / "other.jsonl"), (PLAIN,), 1)
    assert asked.count(DEFAULT.name) == collecting._MOST_ROUNDS + 1  # short runs: all rounds


def test_the_median_round_counts_neither_the_luckiest_nor_the_slowest(tmp_path: Path, monkeypatch):
    rounds = iter([1.0, 1.3, 0.2, 1.1, 5.0] * 20)
    monkeypatch.setattr(collecting, "ARMS", (DEFAULT,))
    monkeypatch.setattr(collecting, "_ROUNDS", (9.0,) * 5)
    real = Trials.run

    async def paced(self, arm, *given):
        return replace(await real(self, arm, *given), latency_s=next(rounds))

    monkeypatch.setattr(Trials, "run", paced)
    journal = Journal(tmp_path / dataset.JOURNAL)
    run(journal, (PLAIN,), 1)
    (record,) = journal.read()
    assert record.outcome["latency_s"] == 1.1
