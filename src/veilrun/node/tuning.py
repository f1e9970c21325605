"""How a node tunes itself before it opens: advice from past runs, a moment's trial, a record of it.

1. The machine is probed, the model's shape read, and the tuner asked about the workload. How well a
   draft guesses is measured first, unless the workload says it.
2. The advised arm, the next best ones and the default arm are tried (`probing`), for half a minute
   at most.
3. Where the owner wants it, what was measured becomes records, so that the next tuner knows more.

The traffic of step 2 is made up: no request of any user is kept, here or in a record.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from veilrun.node import loading, probing
from veilrun.node.agreement import agreement
from veilrun.node.clocks import Clock
from veilrun.node.collecting import as_record
from veilrun.node.engine import EngineLimits
from veilrun.node.measuring import Outcome
from veilrun.node.probing import Probed
from veilrun.node.trials import trials
from veilrun.node.tuned import engine_for
from veilrun.tune import shape, workload
from veilrun.tune.advice import Advice
from veilrun.tune.arms import DEFAULT, Arm, Situation
from veilrun.tune.dataset import JOURNAL
from veilrun.tune.machine import Machine
from veilrun.tune.records import Journal
from veilrun.tune.scenario import Status
from veilrun.tune.task import Task
from veilrun.tune.tuner import Tuner
from veilrun.tune.workload import USUAL_AGREEMENT, Ask, Workload

_N_REQUESTS: Final = 8
"""Of the trial's traffic, at most: three arms three times within half a minute."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What the node's owner said.

    allow_approximate: arms whose answers differ a little may be taken. draft: a smaller model's
    folder. try_out: whether arms are tried before one is taken. records: folder of a data set that
    shall grow.
    """

    workload: Workload
    allow_approximate: bool = False
    draft: Path | None = None
    try_out: bool = True
    records: Path | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """What was decided. probed: None where nothing was tried."""

    arm: Arm
    advice: Advice
    probed: Probed | None

    def describe(self) -> str:
        """The decision in a line, for the owner."""
        expected = f"expected {self.advice.chosen.speed_up:.2f}x the default arm"
        if self.probed is None:
            return f"{self.arm.name}: {expected}"
        measured = self.probed.speed_up(DEFAULT)
        told = "" if measured is None else f", measured {measured:.2f}x"
        return f"{self.arm.name}: {expected}{told} in {self.probed.took_s:.0f} s of trying"


async def choose(
    folder: Path,
    tuner: Tuner,
    wish: Wish,
    machine: Machine,
    *,
    max_model_len: int | None = None,
    clock: Clock | None = None,
    on_step: Callable[[str], None] = lambda step: None,
) -> Choice:
    """Decide how this node runs the model in `folder`.

    clock: of the trial; None: the wall's.

    Raises:
        UsageError: the tuner was trained on other features, or records cannot be kept.
        CheckpointError: `folder` holds no readable model.
    """
    config = loading.load_config(folder).get_text_config()
    limits = engine_for(DEFAULT, folder, max_model_len=max_model_len).limits
    if wish.draft is not None and not wish.workload.agreement:
        on_step("measuring the draft")
        share = await _agreement(folder, wish, limits) if wish.try_out else USUAL_AGREEMENT
        wish = replace(wish, workload=replace(wish.workload, agreement=share))
    task = Task(shape.read(config), machine, wish.workload)
    situation = Situation(
        machine.n_cores,
        has_draft=wish.draft is not None,
        can_compile=False,  # half a minute of trying would go into compiling
        on_cpu=loading.choose_device("auto").type == "cpu",
        exact=not wish.allow_approximate,
    )
    advice = tuner.advise(task.features(), task.describe(), situation)
    if not wish.try_out:
        return Choice(advice.chosen.arm, advice, None)
    asks = _asks(wish, limits)
    arms = probing.shortlist(advice, DEFAULT)
    on_step(f"trying {', '.join(arm.name for arm in arms)}")
    async with trials(folder, limits.max_model_len, wish.draft, clock) as tried:
        probed = await probing.probe(tried, arms, asks, wish.workload)
    if wish.records is not None:
        _keep(wish.records, folder.resolve().name, task, probed)
    return Choice(probed.chosen, advice, probed)


def _asks(wish: Wish, limits: EngineLimits) -> tuple[Ask, ...]:
    """Made-up traffic for the trial."""
    some = replace(wish.workload, n_requests=min(_N_REQUESTS, wish.workload.n_requests))
    return workload.traffic(some, limits.vocab_size, seed=0, max_tokens=limits.max_model_len)


async def _agreement(folder: Path, wish: Wish, limits: EngineLimits) -> float:
    """What the draft guesses of a few answers to made-up prompts."""
    few = replace(wish.workload, n_requests=_N_REQUESTS // 2, sampled=0.0, rate_per_s=0.0)
    asks = _asks(replace(wish, workload=few), limits)
    async with trials(folder, limits.max_model_len, wish.draft) as tried:
        ran = await tried.run(DEFAULT, asks, few.concurrency, probing.LIMIT_S)
    if wish.draft is None or isinstance(ran, Status):
        return USUAL_AGREEMENT
    return round(agreement(wish.draft, asks, ran.answers), 4)


def _keep(folder: Path, model: str, task: Task, probed: Probed) -> None:
    """Add what was measured to a data set, as a task of its own."""
    default = probed.outcomes.get(DEFAULT.name)
    if not isinstance(default, Outcome):
        return  # a task without the default arm has nothing to be compared with
    folder.mkdir(parents=True, exist_ok=True)
    journal = Journal(folder / JOURNAL)
    seen = replace(task, workload=replace(task.workload, repetition=default.repetition))
    name = f"{model}/{task.workload.kind}-{secrets.token_hex(4)}"
    parts = seen.parts(model, "this node")
    for arm, outcome in probed.outcomes.items():
        journal.append(as_record(name, arm, parts, outcome, default))
