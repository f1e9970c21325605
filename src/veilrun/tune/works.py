"""What serving costs, part by part, by arithmetic: seconds of each kind of work a task may need.

An arm decides which parts of the work are done, not what a part costs. One request after another,
each reads its whole prompt and takes a pass through the layers for every token; together, one pass
serves all (`queues`); a guess that holds saves a pass, a remembered prefix saves its products. So
an arm's time is close to a sum of a few of these parts, each times a constant of the engine, and
that sum holds for models and workloads that nobody has measured. `selectors.law` fits the constants
(after Ernest; Venkataraman et al., NSDI 2016); nothing here is fitted.

Parts are named MODE_COST. Modes say how many passes or tokens there are, and `needed` which of them
an arm has. Costs: `small` (the layers' small operations in one pass), `read` (weights read in one
pass), `product` (arithmetic of one token), each of the latter two in whole (`_all`), and apart:
what 8 bits reach (`_8`), and the rest (`_rest`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from veilrun.errors import UsageError
from veilrun.tune import queues
from veilrun.tune.arms import Arm, by_name
from veilrun.tune.machine import Machine
from veilrun.tune.queues import Batching, Pace
from veilrun.tune.scenario import WORK
from veilrun.tune.shape import Shape
from veilrun.tune.workload import Workload

STEPS_PER_LAYER: Final = 300
"""Smallest torch operations that one layer's pass takes as long as, Python around them included."""

_LEAST_S: Final = 1e-12
_N_DRAFTED: Final = 5
"""Tokens that a draft guesses at a time; `node.static_batch` asks for as many."""

_N_DRAWS: Final = 256
_MOST_REQUESTS: Final = 500
"""Of random arrivals: after as many, a queue is what it will be."""


def works(shape: Shape, machine: Machine, workload: Workload) -> dict[str, float]:
    """Seconds of each part in the mean latency of a request, were the arm to need it."""
    cost = _Costs.of(shape, machine)
    found = _alone(cost, workload)
    for mode, batching in _TOGETHER.items():
        found |= _together(mode, batching, cost, workload)
    return found


_TOGETHER: Final[Mapping[str, Batching]] = {
    "joined": Batching(16, 512),
    "joinedfew": Batching(4, 512),
    "chunked": Batching(16, 64),
    "padded": Batching(16),
}
"""How the built-in engines' arms put requests together. An arm like one of them is taken for it."""


def _alone(cost: _Costs, workload: Workload) -> dict[str, float]:
    """Requests one after another."""
    longer = math.exp(workload.spread**2 / 2)  # mean over median of a length
    prompt, answer = workload.prompt_tokens * longer, workload.answer_tokens * longer
    in_line = _in_line(workload, cost.one_pass * (1 + answer) + prompt * cost.product)
    guessed = workload.repetition * (1 - workload.sampled)
    drafted = workload.agreement * (1 - workload.sampled)
    n_reused = workload.prefix_tokens * max(0, workload.n_requests - workload.n_prefixes)
    passes = {
        "alone": in_line * answer,
        "guessed": in_line * answer * (1 - guessed),
        "drafted": in_line * answer / sum(drafted**i for i in range(_N_DRAFTED + 1)),
    }
    tokens = {
        "prompt": in_line * prompt,
        "new": in_line * (prompt - n_reused / workload.n_requests),
        "again": in_line * answer * (prompt + answer / 2),
    }
    found = {
        "one_start": in_line * cost.small,
        "one_token": in_line * answer * cost.step,
        "one_look_prompt": in_line * prompt**2 * cost.look,
        "one_look_answer": in_line * answer * (prompt + answer / 2) * cost.look,
    }
    for mode, n in passes.items():
        found |= cost.of_passes(mode, n)
    for mode, n in tokens.items():
        found |= cost.of_tokens(mode, n)
    return found


def _together(mode: str, batching: Batching, cost: _Costs, workload: Workload) -> dict[str, float]:
    """Requests that share passes."""
    served = queues.serve(workload, batching, Pace(cost.one_pass, cost.product))
    return {
        f"{mode}_start": served.starts * cost.small,
        f"{mode}_token": served.answer_tokens * cost.step,
        f"{mode}_look": served.looks * cost.look,
        **cost.of_passes(mode, served.passes),
        **cost.of_tokens(f"{mode}_prompt", served.prompt_tokens),
        **cost.of_tokens(f"{mode}_answer", served.answer_tokens),
    }


@dataclass(frozen=True, slots=True)
class _Costs:
    """Seconds. small, read: of one pass. step: of one layer's small operations, which is what a
    token costs outside the layers. product: of one token; look: of one token at another one
    (attention). share_8: of the weights read, share_8_body: of the products, that 8 bits reach."""

    small: float
    step: float
    read: float
    product: float
    look: float
    share_8: float
    share_8_body: float

    @classmethod
    def of(cls, shape: Shape, machine: Machine) -> _Costs:
        step = STEPS_PER_LAYER * machine.step_us / 1e6
        n_weights = shape.n_body_params + shape.n_head_params
        rate = machine.gflops_all * 1e9
        return cls(
            small=(shape.n_layers + 1) * step,
            step=step,
            read=4 * n_weights / (machine.copy_gbps * 1e9),
            product=2 * shape.n_body_params / rate,
            look=4 * shape.n_layers * shape.hidden / rate,
            share_8=shape.n_linear_params / n_weights,
            share_8_body=float(shape.linear),
        )

    @property
    def one_pass(self) -> float:
        return self.small + self.read

    def of_passes(self, mode: str, n: float) -> dict[str, float]:
        read = _apart(f"{mode}_read", n * self.read, self.share_8)
        return {f"{mode}_small": n * self.small, **read}

    def of_tokens(self, mode: str, n: float) -> dict[str, float]:
        return _apart(f"{mode}_product", n * self.product, self.share_8_body)


def _apart(name: str, seconds: float, share_8: float) -> dict[str, float]:
    return {
        f"{name}_all": seconds,
        f"{name}_8": seconds * share_8,
        f"{name}_rest": seconds * (1 - share_8),
    }


def needed(arm: str) -> Callable[[str], bool]:
    """Tells of a feature that holds a part whether this arm may need it: all of them for an arm
    that `tune.arms` does not know."""
    try:
        known = by_name(arm)
    except UsageError:
        return lambda feature: True
    modes = tuple(f"{mode}_" for mode in _modes(known))
    other = "_all" if known.weights == "int8" else ("_8", "_rest")

    def tells(feature: str) -> bool:
        part = feature.partition(WORK)[2]
        return part.startswith(modes) and not part.endswith(other)

    return tells


def _modes(arm: Arm) -> tuple[str, ...]:
    if arm.max_running > 1:
        if arm.batching == "static":
            return ("padded",)
        if arm.chunk_tokens is not None:
            return ("chunked",)
        return ("joined",) if arm.max_running > _FEW else ("joinedfew",)
    passes = {"none": (), "prompt-lookup": ("guessed",), "draft": ("drafted",)}[arm.speculation]
    prompts = ("new",) if arm.prefix_cache else ()
    again = () if arm.kv_cache else ("again",)
    return ("one", "alone", "prompt", *passes, *prompts, *again)


_FEW: Final = 8


def features(shape: Shape, machine: Machine, workload: Workload) -> dict[str, float]:
    """Of `works`, the logarithms to base 2, by names that `Scenario.is_work` knows."""
    return {
        f"{WORK}{name}": math.log2(max(seconds, _LEAST_S))
        for name, seconds in works(shape, machine, workload).items()
    }


def _in_line(workload: Workload, alone_s: float) -> float:
    """How many times its own service a request takes when served in line: the mean, at least 1.

    alone_s: seconds that one request takes.
    """
    n = workload.n_requests
    if not workload.rate_per_s:
        at_once = min(workload.concurrency, n)
        return (at_once * (at_once + 1) / 2 + (n - at_once) * at_once) / n
    random = np.random.default_rng(0)  # the same queue every time; nothing here is secret
    n = min(n, _MOST_REQUESTS)
    gaps = random.exponential(1 / workload.rate_per_s, (n - 1, _N_DRAWS))
    wait = np.zeros(_N_DRAWS)
    total = wait.copy()
    for gap in gaps:  # Lindley's recursion
        wait = np.maximum(0.0, wait + alone_s - gap)
        total += wait
    return 1 + float(total.mean()) / n / alone_s
