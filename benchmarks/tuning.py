"""What `--tune auto` is worth: three workloads the tuner never saw, on the bundled model, live.

    python benchmarks/tuning.py [--rounds 5] [--tuner FOLDER] [--own-time]

The bundled model is encrypted, and neither it nor these workloads are in the tuner's data. For each
workload the node decides as `veilrun node --tune auto` does: advice from past runs, then three arms
tried for a moment, on made-up traffic. Then every arm that may run serves other traffic of that
workload, in turns; the median round counts. Printed are the speed-ups over the default arm of the
arm that was chosen and of the best one, once with arms whose answers stay exact, once with all.

With `--own-time`, for a process bound to one core (`taskset -c 0`), all is measured in CPU seconds,
as the tuner's data was; without, by the wall clock. The workload's repetition is what the default
arm's answers showed on traffic of a day before. Compiled arms stay out: `auto` does not take them.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from report import Report

from veilrun import bundled
from veilrun.equivariant.compile import encrypt
from veilrun.keys import MasterKey
from veilrun.node import loading
from veilrun.node.clocks import Clock, CpuClock, WallClock
from veilrun.node.measuring import Outcome, median_round
from veilrun.node.trials import Trials, trials
from veilrun.node.tuning import Choice, Wish, choose
from veilrun.tune import workload
from veilrun.tune.arms import ARMS, DEFAULT, Arm, Situation
from veilrun.tune.machine import Machine, probe
from veilrun.tune.tuner import Tuner
from veilrun.tune.workload import Ask, Workload

UNSEEN = (
    workload.Workload("rewriting", 8, 1, 96, 48, spread=0.2),
    workload.Workload("questions on a text", 8, 2, 320, 12, spread=0.1, prefix_tokens=280),
    workload.Workload("many at once", 12, 12, 40, 24, spread=0.3),
)
PROMISED = 0.7
CUTOFF_S = 120.0


async def main(rounds: int, tuner_folder: Path, clock: Clock) -> None:
    """Measure all, print lines, then the table."""
    report = Report("--tune auto on the bundled model")
    machine, tuner = probe(), Tuner.load(tuner_folder)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        encrypt(str(bundled.prompter()), folder / "out", MasterKey(bytes(32)), kits=folder / "kits")
        for number, wanted in enumerate(UNSEEN):
            subject = Subject(folder / "out", tuner, machine, clock, rounds)
            await unseen(report, subject, wanted, number)
    report.show()


@dataclass(frozen=True, slots=True)
class Subject:
    """What all three workloads have in common."""

    folder: Path
    tuner: Tuner
    machine: Machine
    clock: Clock
    rounds: int


async def unseen(report: Report, subject: Subject, wanted: Workload, number: int) -> None:
    """One workload: look at yesterday's traffic, decide, run everything on today's."""
    config = loading.load_config(subject.folder)
    room = config.max_position_embeddings
    yesterday, today = (
        workload.traffic(wanted, config.vocab_size, 1000 * number + day, max_tokens=room)
        for day in (1, 2)
    )
    async with trials(subject.folder, room, clock=subject.clock) as tried:
        seen = await tried.run(DEFAULT, yesterday, wanted.concurrency, CUTOFF_S)
        if not isinstance(seen, Outcome):
            raise SystemExit(f"the default arm ended with {seen}")
        described = replace(wanted, repetition=round(seen.repetition, 3))
        choices = {
            policy: await choose(
                subject.folder,
                subject.tuner,
                Wish(described, allow_approximate=policy == "all"),
                subject.machine,
                clock=subject.clock,
            )
            for policy in ("exact", "all")
        }
        best = await everything(tried, today, described, subject)
    for policy, choice in choices.items():
        allowed = {arm: latency for arm, latency in best.items() if policy == "all" or arm.is_exact}
        add(report, described, policy, choice, allowed)


async def everything(
    tried: Trials, asks: Sequence[Ask], wanted: Workload, subject: Subject
) -> dict[Arm, float]:
    """The mean latency of every arm that may run, in seconds: of its median round."""
    situation = Situation(subject.machine.n_cores, can_compile=False)
    arms = [arm for arm in ARMS if not situation.objections(arm)]
    ran: dict[Arm, list[Outcome]] = {arm: [] for arm in arms}
    order = np.random.default_rng(0)
    for _ in range(subject.rounds):
        for i in order.permutation(len(arms)):
            outcome = await tried.run(arms[i], asks, wanted.concurrency, CUTOFF_S)
            if isinstance(outcome, Outcome):
                ran[arms[i]].append(outcome)
    return {arm: median_round(runs).latency_s for arm, runs in ran.items() if runs}


def add(
    report: Report, wanted: Workload, policy: str, choice: Choice, best: dict[Arm, float]
) -> None:
    """One line: what was chosen, what it gained, what the best arm gains."""
    oracle = min(best, key=best.__getitem__)
    own, most = best[DEFAULT] / best[choice.arm], best[DEFAULT] / best[oracle]
    facts = {
        "workload": wanted.to_json(),
        "arms": policy,
        "advised": choice.advice.chosen.arm.name,
        "chosen": choice.arm.name,
        "oracle": oracle.name,
        "speed_up": own,
        "oracle_speed_up": most,
        "share": own / most,
        "tried_s": choice.probed.took_s if choice.probed else 0.0,
        "latency_s": {arm.name: latency for arm, latency in best.items()},
    }
    summary = (
        f"{wanted.kind}, {policy} arms: {choice.arm.name} {own:.2f}x; best {oracle.name} "
        f"{most:.2f}x; share {own / most:.2f}"
    )
    report.add("tune-auto", facts, summary, f">= {PROMISED} of the best")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tuner", type=Path, default=bundled.runs())
    parser.add_argument("--own-time", action="store_true")
    options = parser.parse_args()
    clock = CpuClock() if options.own_time else WallClock()
    asyncio.run(main(options.rounds, options.tuner, clock))
