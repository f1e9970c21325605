"""Who runs together, pass by pass: batches as engines form them, played through without a model.

A request's time is made of the passes through the layers between its coming and its last token, its
own and those that others' prompts and tokens take meanwhile. How many there are follows from the
way requests are batched and from the traffic alone; only where requests come at random moments does
it matter how long a pass takes, for which a rough figure does (`Pace`).

Long answers and prompts are played in coarser steps, and long queues by their beginning, so that no
workload takes more than a moment.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from veilrun.tune.scenario import Floats
from veilrun.tune.workload import Workload

_N_DRAWS: Final = 8
_MOST_REQUESTS: Final = 24
_MOST_STEPS: Final = 48
"""Of one answer or prompt; longer ones are played in as many, coarser steps."""

_LONGEST: Final = 400
"""Steps of the longest answer; lengths that differ more than that are not told apart."""


@dataclass(frozen=True, slots=True)
class Batching:
    """How requests share passes.

    max_running: at a time. max_tokens: in one pass, of prompts and answers together; None: requests
    come and go as one padded batch.
    """

    max_running: int
    max_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds, roughly. one_pass: through the layers; token: of arithmetic for one token."""

    one_pass: float
    token: float


@dataclass(slots=True)
class Served:
    """What falls into the mean request's time, others' share of it included.

    passes; prompt_tokens, answer_tokens: computed in them; looks: of one token at another one
    (attention); starts: prompts begun.
    """

    passes: float = 0.0
    prompt_tokens: float = 0.0
    answer_tokens: float = 0.0
    looks: float = 0.0
    starts: float = 0.0


@dataclass(slots=True, eq=False)
class _Request:
    """arrives: at which second; None: when its turn comes. n_read, n_made: tokens so far."""

    arrives: float | None
    prompt: float
    answer: int
    n_read: float = 0.0
    n_made: int = 0


@dataclass(slots=True)
class _Pass:
    """What one pass computes. rows: answers that grow by a step. ended: those that end with it."""

    prompt_tokens: float = 0.0
    rows: int = 0
    looks: float = 0.0
    starts: int = 0
    ended: list[_Request] = field(default_factory=list)


def serve(workload: Workload, batching: Batching, pace: Pace) -> Served:
    """The mean over requests, and over a few draws of traffic like this."""
    random = np.random.default_rng(0)  # the same traffic every time; nothing here is secret
    total = Served()
    step = max(1.0, workload.answer_tokens / _MOST_STEPS)
    for _ in range(_N_DRAWS):
        requests = _draw(workload, step, random)
        _play(requests, workload.concurrency, batching, pace, step, total)
    n = _N_DRAWS * min(workload.n_requests, _MOST_REQUESTS)
    for name in Served.__dataclass_fields__:
        setattr(total, name, getattr(total, name) / n)
    return total


def _draw(workload: Workload, step: float, random: np.random.Generator) -> list[_Request]:
    n = min(workload.n_requests, _MOST_REQUESTS)
    stretch = np.exp(workload.spread * _exactly(random.standard_normal((n, 2))))
    rate = workload.rate_per_s
    gaps, times = random.exponential(size=n - 1), np.zeros(n)
    if rate and n > 1:
        times[1:] = np.cumsum(gaps / (gaps.mean() * rate))
    return [
        _Request(
            float(times[i]) if rate else None,
            max(1.0, workload.prompt_tokens * stretch[i, 0]),
            max(1, round(min(workload.answer_tokens * stretch[i, 1] / step, _LONGEST))),
        )
        for i in range(n)
    ]


def _exactly(drawn: Floats) -> Floats:
    """Columns with mean 0 and standard deviation 1, as the workload says, not just about so."""
    if len(drawn) < 2:
        return np.zeros_like(drawn)
    return np.asarray((drawn - drawn.mean(0)) / drawn.std(0))


def _play(
    requests: list[_Request],
    concurrency: int,
    batching: Batching,
    pace: Pace,
    step: float,
    total: Served,
) -> None:
    """Play one traffic to its end, and add up what falls into each request's time.

    Whoever waits for one of the `concurrency` places has not come yet, as in `node.measuring`,
    unless it comes at a moment of its own.
    """
    now, left = 0.0, list(requests)
    here: list[_Request] = []
    running: list[_Request] = []
    while left or here:
        while left and len(here) < concurrency and (left[0].arrives or 0.0) <= now:
            here.append(left.pop(0))
        if not here:
            now = max(now, left[0].arrives or 0.0)
            continue
        one = (
            _padded(here, running, batching)
            if batching.max_tokens is None
            else _mixed(here, running, batching)
        )
        n_pieces = one.prompt_tokens / (batching.max_tokens or math.inf)
        steps = step if one.rows else max(1.0, n_pieces)
        now += steps * pace.one_pass + (one.prompt_tokens + steps * one.rows) * pace.token
        n_here = len(here)
        total.passes += n_here * steps
        total.prompt_tokens += n_here * one.prompt_tokens
        total.answer_tokens += n_here * steps * one.rows
        total.looks += n_here * one.looks * (step if one.rows else 1.0)
        total.starts += n_here * one.starts
        for request in one.ended:
            here.remove(request)


def _mixed(here: list[_Request], running: list[_Request], batching: Batching) -> _Pass:
    """A pass of continuous batching: a token for each that answers, prompts in the room left."""
    running[:] = [request for request in running if request in here]
    running += [one for one in here if one not in running][: batching.max_running - len(running)]
    longest = max(request.prompt for request in running)
    one, room = _Pass(), max(batching.max_tokens or 0.0, longest / _MOST_STEPS)
    for request in running:
        if request.n_read >= request.prompt:
            one.rows, room = one.rows + 1, room - 1
            one.looks += request.prompt + request.n_made
            _make(request, one)
    for request in running:
        if room <= 0:
            break
        if request.n_read < request.prompt:
            n = min(room, request.prompt - request.n_read)
            one.starts += request.n_read == 0
            one.looks += n * (request.n_read + n)
            request.n_read, room = request.n_read + n, room - n
            one.prompt_tokens += n
            if request.n_read >= request.prompt:
                _make(request, one)  # the last prompt token's pass gives the first answer token
    return one


def _padded(here: list[_Request], running: list[_Request], batching: Batching) -> _Pass:
    """A pass of a padded batch: its rows stay until the longest answer ends."""
    if not any(request in here for request in running):
        running[:] = here[: batching.max_running]
        longest = max(request.prompt for request in running)
        one = _Pass(len(running) * longest, 0, len(running) * longest**2, len(running))
    else:
        longest = max(request.prompt for request in running)
        n_made = max(request.n_made for request in running)
        one = _Pass(0.0, len(running), len(running) * (longest + n_made))
    for request in running:
        if request in here:
            _make(request, one)
    return one


def _make(request: _Request, one: _Pass) -> None:
    request.n_made += 1
    if request.n_made >= request.answer:
        one.ended.append(request)
