"""Made-up runs for the tuner's tests: real features, times by a formula that a learner can find."""

from __future__ import annotations

import numpy as np

from veilrun.tune.machine import Machine
from veilrun.tune.records import Record
from veilrun.tune.scenario import Status
from veilrun.tune.shape import Shape
from veilrun.tune.task import Task
from veilrun.tune.workload import KINDS, draw

MACHINE = Machine(
    n_cores=2, gflops=60.0, gflops_all=110.0, copy_gbps=9.0, int8_gain=2.0, step_us=1.5
)
LAYERS = (2, 4, 6, 8)


def shape(n_layers: int) -> Shape:
    return Shape("llama", n_layers, 256, 8, 8, 680, 4096, gated=True)


def known(n_layers: int, kind: str, seed: int) -> Task:
    return Task(shape(n_layers), MACHINE, draw(kind, (1, 8), seed))


def runs(n_each: int = 3) -> list[Record]:
    """Four models, all kinds of work. Guessing pays where answers repeat, the prefix cache where
    prompts begin alike; eight bits save a quarter, and fail on the largest model's bulk work."""
    random = np.random.default_rng(0)
    records = []
    for n_layers in LAYERS:
        for i, kind in enumerate(list(KINDS) * n_each):
            task = known(n_layers, kind, i)
            work = task.workload
            shared = work.prefix_tokens / work.prompt_tokens
            base = 0.01 * n_layers * work.answer_tokens + 0.0005 * n_layers * work.prompt_tokens
            times = {
                "continuous-16": base,
                "single": 1.2 * base,
                "single-lookup": base * (1.3 - work.repetition),
                "single-prefix": base * (1.3 - shared),
                "static-16-int8": None if (n_layers, kind) == (LAYERS[-1], "bulk") else 0.75 * base,
            }
            parts = task.parts(f"model {n_layers}", "box")
            for arm, seconds in times.items():
                noise = float(np.exp(random.normal(0, 0.02)))
                outcome = {} if seconds is None else {"latency_s": seconds * noise}
                status = Status.CRASH if seconds is None else Status.OK
                name = f"model {n_layers}/{kind}-{i}"
                records.append(Record(name, arm, status, **parts, outcome=outcome))
    return records
