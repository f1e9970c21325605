"""Collecting records: every arm on every task, in turns, so that a drifting machine hits all alike.

A task is a specimen and a workload; which ones follows from a seed. For each task the default arm
goes first: its time sets the cutoff, its answers are what the others' are held against. What is
written down of a workload is what the traffic had: its lengths, its answers' repetition, and how
many of their ids a draft would guess. Then arms take turns, in a new order each round: all of them,
then those that could still be the best, then those near the best, so that time goes where it
decides; before its first turn an arm warms up. An arm's median round counts: on machines that
others use too, a shortest round is a matter of luck. A task's records are written when all its arms
are done, the default arm's last.

Invariant: whatever ends the work, the journal holds whole tasks only, and the next run goes on
after them.
"""

from __future__ import annotations

import math
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np

from veilrun.errors import RefusedError
from veilrun.node import loading
from veilrun.node.agreement import agreement
from veilrun.node.clocks import Clock, WallClock
from veilrun.node.measuring import Outcome, Turns
from veilrun.node.trials import Trials, trials
from veilrun.tune import shape, workload
from veilrun.tune.arms import ARMS, DEFAULT, Arm, Situation
from veilrun.tune.machine import Machine
from veilrun.tune.records import VERSION, Journal, Record
from veilrun.tune.scenario import Status
from veilrun.tune.specimens import MAX_TOKENS, N_LOOPING, Specimen, make
from veilrun.tune.task import Entries, Task
from veilrun.tune.workload import KINDS, Ask, Workload

_CUTOFF_RATIO: Final = 8.0
_CUTOFF_FLOOR_S: Final = 10.0
_ROUNDS: Final = (math.inf, 1.6, 1.6, 1.3, 1.3)
"""Who goes on in each round: arms whose latency is at most this many times the best so far."""

_MOST_ROUNDS: Final = 11
_ENOUGH_S: Final = 20.0
"""More rounds like the last, up to the most, until a task has taken this long: short runs are the
ones that chance moves."""

_LARGE: Final = 1_000_000
"""Of `Specimen.size`."""

_FIRST_CUTOFF_S: Final = 120.0
"""Of the default arm, and of a first run that compiles."""


@dataclass(frozen=True, slots=True)
class PlannedTask:
    """name: of the specimen, the kind and a number."""

    name: str
    specimen: Specimen
    workload: Workload
    seed: int


def tasks(
    specimens: Sequence[Specimen], n_each: int, seed: int, n_requests: tuple[int, int]
) -> Iterator[PlannedTask]:
    """`n_each` tasks for every specimen; all kinds of work in turn.

    Large models get fewer requests a task, so that no task takes minutes.
    """
    kinds = tuple(KINDS)
    least, most = n_requests
    for specimen in specimens:
        bounds = least, max(least, most // 2 if specimen.size > _LARGE else most)
        own = seed + zlib.crc32(specimen.name.encode())  # whatever else is collected beside it
        for i in range(n_each):
            kind = kinds[(i + own) % len(kinds)]
            drawn = workload.draw(kind, bounds, own + i)
            yield PlannedTask(f"{specimen.name}/{kind}-{i}", specimen, drawn, own + i)


@dataclass(frozen=True, slots=True)
class Collection:
    """How to collect.

    machine_name: what this machine is called in the records. compiled: measure torch.compile too,
    which takes a minute a task.
    """

    machine: Machine
    machine_name: str
    can_compile: bool
    compiled: bool = False
    clock: Clock = field(default_factory=WallClock)


async def collect(
    wanted: Sequence[PlannedTask],
    journal: Journal,
    how: Collection,
    on_task: Callable[[PlannedTask, int], None] = lambda task, n_records: None,
) -> None:
    """Measure what the journal does not have yet. `on_task` is called after every task.

    Raises:
        UsageError: the journal cannot be written; RefusedError: the default arm fails on a task.
    """
    by_specimen: dict[Specimen, list[PlannedTask]] = {}
    for task in wanted:
        todo = _unmeasured(task, journal)
        if todo is None:
            on_task(task, 0)
        else:
            by_specimen.setdefault(task.specimen, []).append(todo)
    for specimen, open_tasks in by_specimen.items():
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            make(specimen, folder)
            draft = folder / "draft" if specimen.draft_accuracy is not None else None
            async with trials(folder, MAX_TOKENS, draft, how.clock) as tried:
                for task in open_tasks:
                    records = await _task(task, folder, tried, how, has_draft=draft is not None)
                    for record in records:
                        journal.append(record)
                    on_task(task, len(records))


def _unmeasured(task: PlannedTask, journal: Journal) -> PlannedTask | None:
    """The task, if it has to be measured; under another name where a crash left a part of it.

    Records of one task are of one run: what is left of the broken one is told apart by its name.
    """
    name = task.name
    while not journal.has(name, DEFAULT.name):
        if not any(journal.has(name, arm.name) for arm in ARMS):
            return replace(task, name=name)
        name += ", again"
    return None


async def _task(
    task: PlannedTask, folder: Path, tried: Trials, how: Collection, *, has_draft: bool
) -> list[Record]:
    """Every arm on one task."""
    of_model = shape.read(loading.load_config(folder))
    asks = workload.traffic(
        task.workload, of_model.vocab_size, task.seed, n_looping=N_LOOPING, max_tokens=MAX_TOKENS
    )
    first = await tried.run(DEFAULT, asks, task.workload.concurrency, _FIRST_CUTOFF_S)
    if isinstance(first, Status):
        raise RefusedError(f"{task.name}: the default arm ended with {first}; nothing to compare")
    situation = Situation(how.machine.n_cores, has_draft=has_draft, can_compile=how.can_compile)
    wanted = [arm for arm in ARMS if how.compiled or not arm.compiled]
    arms = [arm for arm in wanted if not situation.objections(arm)]
    ended: dict[str, Outcome | Status] = {arm.name: Status.NOT_APPLICABLE for arm in wanted}
    ended |= await _rounds(task, tried, asks, arms, first)
    seen = replace(
        workload.observed(task.workload, asks),
        repetition=round(first.repetition, 4),
        agreement=round(agreement(folder / "draft", asks, first.answers), 4) if has_draft else 0.0,
    )
    known = Task(of_model, how.machine, seen)
    parts = known.parts(task.specimen.name, how.machine_name)
    return [
        as_record(task.name, arm.name, parts, ended[arm.name], first) for arm in reversed(wanted)
    ]


async def _rounds(
    task: PlannedTask, tried: Trials, asks: Sequence[Ask], arms: Sequence[Arm], first: Outcome
) -> dict[str, Outcome | Status]:
    """Let all arms take turns: the median round of each, by its name, or how it failed."""
    order = np.random.default_rng(task.seed)
    wall_s = sum(map(len, first.answers)) / first.tokens_per_s
    cutoff_s = max(_CUTOFF_FLOOR_S, _CUTOFF_RATIO * wall_s)
    concurrency = task.workload.concurrency
    turns = Turns()
    for arm in arms:
        if arm.compiled or not tried.has_run(arm):  # first runs pay for what later ones find done
            some = asks if arm.compiled else asks[:1]
            warm = await tried.run(arm, some, concurrency, _FIRST_CUTOFF_S)
            if isinstance(warm, Status):
                turns.add(arm.name, warm)
    start = time.perf_counter()
    for number in range(_MOST_ROUNDS):
        if number >= len(_ROUNDS) and time.perf_counter() - start > _ENOUGH_S:
            break
        ratio = _ROUNDS[min(number, len(_ROUNDS) - 1)]
        quickest = {exact: _quickest(arms, turns, exact) for exact in (True, False)}
        for i in order.permutation(len(arms)):
            so_far = turns.result(arms[i].name)
            limit_s = ratio * quickest[arms[i].is_exact]
            if isinstance(so_far, Status) or (so_far and so_far.latency_s > limit_s):
                continue
            turns.add(arms[i].name, await tried.run(arms[i], asks, concurrency, cutoff_s))
    return turns.results()


def _quickest(arms: Sequence[Arm], turns: Turns, exact: bool) -> float:
    """Who may not use approximate arms has a race of their own."""
    so_far = [turns.result(arm.name) for arm in arms if arm.is_exact == exact]
    return min((one.latency_s for one in so_far if isinstance(one, Outcome)), default=0.0)


def as_record(
    task: str,
    arm: str,
    parts: Mapping[str, Entries],
    outcome: Outcome | Status,
    default: Outcome,
) -> Record:
    """What was measured, or how the run failed. parts: of the task; see `tune.task`."""
    numbers: dict[str, float] = {}
    if not isinstance(outcome, Status):
        numbers = {
            "latency_s": outcome.latency_s,
            "ttft_p50_s": outcome.ttft_p50_s,
            "ttft_p99_s": outcome.ttft_p99_s,
            "tpot_s": outcome.tpot_s,
            "tokens_per_s": outcome.tokens_per_s,
            "cpu_s_per_token": outcome.cpu_s_per_token,
            "peak_rss_bytes": outcome.peak_rss_bytes,
            "exact": float(outcome.answers == default.answers),
        }
    return Record(
        task=task,
        arm=arm,
        status=outcome if isinstance(outcome, Status) else Status.OK,
        **parts,
        outcome=numbers,
        version=VERSION,
    )
