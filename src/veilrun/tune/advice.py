"""What a tuner says: an arm, what it expects of it, and what speaks against the others.

Numbers are expected, not measured: speed-ups over the arm that runs when nobody chooses, with the
factor by which the learner's own parts disagree. A price turns them into money: what a thousand
requests cost is their time times the machine's price, as in MetaInf (arXiv 2410.21340), and a
budget refuses what costs more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from veilrun.errors import RefusedError
from veilrun.tune.arms import Arm
from veilrun.tune.workload import Workload


@dataclass(frozen=True, slots=True)
class Option:
    """One arm that may run. speed_up: expected latency of the default arm over this one's.

    factor: the speed-up is likely between itself over this and itself times this (one standard
        deviation). latency_s: expected mean latency of a request.
    """

    arm: Arm
    speed_up: float
    factor: float
    latency_s: float

    def cost(self, workload: Workload, price_per_hour: float) -> float:
        """Of a thousand requests, in the price's currency, on a machine that does nothing else."""
        together = min(workload.concurrency, workload.n_requests)
        return 1000 * self.latency_s / together * price_per_hour / 3600


@dataclass(frozen=True, slots=True)
class Advice:
    """options: the chosen one first, then by expected speed-up. refused: arm -> why it may not run.

    is_guarded: the learner was not sure enough of its own choice, so the arm that is best on
        average was taken. remarks: what of the machine or model lies outside all recorded runs.
    """

    options: tuple[Option, ...]
    refused: Mapping[str, tuple[str, ...]]
    is_guarded: bool
    remarks: tuple[str, ...]

    @property
    def chosen(self) -> Option:
        """What to run."""
        return self.options[0]

    def within(self, budget: float, workload: Workload, price_per_hour: float) -> Advice:
        """The same advice without what costs more than `budget` for a thousand requests.

        Raises:
            RefusedError: nothing is left; the cheapest arm and its cost are named.
        """
        costs = [option.cost(workload, price_per_hour) for option in self.options]
        cheapest = min(range(len(costs)), key=costs.__getitem__)
        if costs[cheapest] > budget:
            raise RefusedError(
                f"no arm serves a thousand such requests for {budget:g}: the cheapest, "
                f"{self.options[cheapest].arm.name}, is expected to cost {costs[cheapest]:.3g}"
            )
        dear = {
            option.arm.name: (f"a thousand requests would cost {cost:.3g}, more than {budget:g}",)
            for option, cost in zip(self.options, costs, strict=True)
            if cost > budget
        }
        kept = tuple(one for one in self.options if one.arm.name not in dear)
        return Advice(kept, {**self.refused, **dear}, self.is_guarded, self.remarks)

    def to_json(self) -> dict[str, Any]:
        """For `--json` and for records."""
        return {
            "arm": self.chosen.arm.name,
            "is_guarded": self.is_guarded,
            "options": [
                {
                    "arm": one.arm.name,
                    "speed_up": one.speed_up,
                    "factor": one.factor,
                    "latency_s": one.latency_s,
                    "leaks": list(one.arm.leaks()),
                }
                for one in self.options
            ],
            "refused": {name: list(reasons) for name, reasons in self.refused.items()},
            "remarks": list(self.remarks),
        }
