"""A task: a model, a machine and a workload, as records and selectors see it."""

from __future__ import annotations

from dataclasses import dataclass

from veilrun.tune import works
from veilrun.tune.estimates import estimates
from veilrun.tune.machine import Machine
from veilrun.tune.shape import Shape
from veilrun.tune.workload import Workload

Entries = dict[str, float | str]


@dataclass(frozen=True, slots=True)
class Task:
    """What is known before any arm runs."""

    shape: Shape
    machine: Machine
    workload: Workload

    def parts(self, model_name: str, machine_name: str) -> dict[str, Entries]:
        """For a `Record`: model, machine, workload. Names are labels, which no selector sees."""
        return {
            "model": {
                "name": model_name,
                "text": self.shape.describe(),
                **self.shape.features(),
            },
            "machine": {
                "name": machine_name,
                "text": self.machine.describe(),
                **self.machine.features(),
            },
            "workload": {
                "kind": self.workload.kind,
                "text": self.workload.describe(),
                **self.workload.features(),
                **estimates(self.shape, self.machine, self.workload),
                **works.features(self.shape, self.machine, self.workload),
            },
        }

    def features(self) -> dict[str, float]:
        """For a selector: the numbers, by their names in a table."""
        return {
            f"{part}.{name}": value
            for part, entries in self.parts("", "").items()
            for name, value in entries.items()
            if not isinstance(value, str)
        }

    def describe(self) -> str:
        """The task in sentences."""
        parts = (self.shape, self.machine, self.workload)
        return "; ".join(part.describe() for part in parts)
