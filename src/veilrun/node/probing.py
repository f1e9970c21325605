"""Looking before opening: the advised arms tried for a moment on this node's own model.

1. The arms to try: the advised one, the next best, and the default arm.
2. All serve the same made-up traffic, shaped like the workload, in turns, three times each, until
   the time is up; an arm's median run counts.
3. The quickest is taken, unless it is quicker than the advised one by less than `MARGIN`.

Made-up prompts do not make a real model repeat itself as real ones do. So where the answers'
measured repetition is far from the workload's, guessing arms are neither preferred for their time
nor dropped for it: the advice stands on them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from veilrun.node.measuring import Outcome, Turns
from veilrun.node.trials import Trials
from veilrun.tune.advice import Advice
from veilrun.tune.arms import Arm
from veilrun.tune.scenario import Status
from veilrun.tune.workload import Ask, Workload

N_PROBES: Final = 3
LIMIT_S: Final = 30.0
MARGIN: Final = 0.05
_ROUNDS: Final = 3
_NEAR: Final = 0.2


@dataclass(frozen=True, slots=True)
class Probed:
    """chosen: the arm to run. outcomes: of every arm that was tried, or how it failed."""

    chosen: Arm
    outcomes: dict[str, Outcome | Status]
    took_s: float

    def speed_up(self, default: Arm) -> float | None:
        """Of the chosen arm over the default one; None unless both were measured."""
        own, other = self.outcomes.get(self.chosen.name), self.outcomes.get(default.name)
        if isinstance(own, Outcome) and isinstance(other, Outcome):
            return other.latency_s / own.latency_s
        return None


def shortlist(advice: Advice, default: Arm) -> tuple[Arm, ...]:
    """Up to `N_PROBES` arms, the advised one first."""
    ranked = [one.arm for one in advice.options if one.arm != default]
    may_default = any(one.arm == default for one in advice.options)
    room = N_PROBES - may_default
    return (*ranked[:room], *([default] if may_default else []))


async def probe(
    tried: Trials,
    arms: Sequence[Arm],
    asks: Sequence[Ask],
    workload: Workload,
    limit_s: float = LIMIT_S,
) -> Probed:
    """Try the arms, the advised one first in the list; see the head of this file."""
    start = time.perf_counter()
    turns = Turns()
    for _ in range(_ROUNDS):
        for arm in arms:
            left_s = limit_s - (time.perf_counter() - start)
            if left_s <= 0 or isinstance(turns.result(arm.name), Status):
                continue
            turns.add(arm.name, await tried.run(arm, asks, workload.concurrency, left_s))
    outcomes = turns.results()
    chosen = _decide(arms, outcomes, workload)
    return Probed(chosen, outcomes, time.perf_counter() - start)


def _decide(arms: Sequence[Arm], outcomes: dict[str, Outcome | Status], workload: Workload) -> Arm:
    measured = {
        arm: outcome
        for arm in arms
        if isinstance(outcome := outcomes.get(arm.name), Outcome)
        and _is_fair(arm, outcome, workload)
    }
    advised = arms[0]
    failed = isinstance(outcomes.get(advised.name), Status)
    if not measured or (advised not in measured and not failed):
        return advised
    quickest = min(measured, key=lambda arm: measured[arm].latency_s)
    if failed or measured[quickest].latency_s < (1 - MARGIN) * measured[advised].latency_s:
        return quickest
    return advised


def _is_fair(arm: Arm, outcome: Outcome, workload: Workload) -> bool:
    """Whether the probe's answers repeat themselves as the workload's do, where that matters."""
    return arm.speculation == "none" or abs(outcome.repetition - workload.repetition) <= _NEAR
