"""How fast an engine serves some traffic: the measure that the tuner's records hold.

The measure is the mean latency of a request: from when it may come to its last token. Where `n`
requests are in flight at any time, that is `n` over the throughput; where requests come at random
moments, it is what a user feels. So one number serves all kinds of traffic.

Invariant: every request is asked once, or the run is given up as a whole (`cutoff_s`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import psutil

from veilrun.errors import VeilrunError
from veilrun.node.clocks import Clock, WallClock
from veilrun.node.engine import Engine, admit
from veilrun.tune.guessing import share_guessed
from veilrun.tune.scenario import Status
from veilrun.tune.workload import Ask
from veilrun.wire.generate import GenerateRequest, SamplingParams


class BrokenRunError(VeilrunError):
    """The engine ended a request early: there is nothing to measure."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """latency_s: mean over requests. ttft: time to first token. tpot_s: mean time of the others.

    cpu_s_per_token: of this process, all threads. answers: of each request, in order.
    """

    latency_s: float
    ttft_p50_s: float
    ttft_p99_s: float
    tpot_s: float
    tokens_per_s: float
    cpu_s_per_token: float
    peak_rss_bytes: float
    repetition: float
    answers: tuple[tuple[int, ...], ...]


@dataclass(slots=True, eq=False)
class Turns:
    """What came of arms that take turns, by their names. Whatever ran once stays measured: a later
    failure is the machine's, or the time's."""

    _ran: dict[str, list[Outcome]] = field(default_factory=dict)
    _failed: dict[str, Status] = field(default_factory=dict)

    def add(self, arm: str, outcome: Outcome | Status) -> None:
        """One round of an arm."""
        if not isinstance(outcome, Status):
            self._ran.setdefault(arm, []).append(outcome)
        elif arm not in self._ran:
            self._failed[arm] = outcome

    def result(self, arm: str) -> Outcome | Status | None:
        """How it failed, or its round of median latency so far (of two in the middle, the quicker
        one); None: it had no turn."""
        if arm in self._failed:
            return self._failed[arm]
        rounds = sorted(self._ran.get(arm, ()), key=lambda one: one.latency_s)
        return rounds[(len(rounds) - 1) // 2] if rounds else None

    def results(self) -> dict[str, Outcome | Status]:
        """Of all that had a turn."""
        names = [*self._ran, *self._failed]
        return {name: result for name in names if (result := self.result(name)) is not None}


@dataclass(slots=True)
class _Timing:
    """Of one request, in seconds after the start."""

    came: float
    first: float = 0.0
    last: float = 0.0


async def measure(
    engine: Engine,
    asks: Sequence[Ask],
    concurrency: int,
    salt: str,
    cutoff_s: float,
    clock: Clock | None = None,
) -> Outcome:
    """Serve the traffic once.

    salt: of all requests; a new one for every run, or a prefix cache remembers the last run.
    cutoff_s: by the wall clock, whatever `clock` says; None is the wall clock.

    Raises:
        TimeoutError: it took longer than `cutoff_s`.
        BrokenRunError: the engine gave up on a request.
    """
    requests = [_request(ask, salt) for ask in asks]
    for request in requests:
        admit(request, engine.limits)
    cpu_before = time.process_time()
    run = _Run(engine, asyncio.Semaphore(concurrency), clock or WallClock())
    try:
        async with asyncio.timeout(cutoff_s), asyncio.TaskGroup() as group:
            tasks = []
            for request, ask in zip(requests, asks, strict=True):
                if ask.at_s:
                    await run.arrival(ask.at_s)
                tasks.append(group.create_task(run.serve(request, in_turn=not ask.at_s)))
    except ExceptionGroup as errors:
        if errors.subgroup(MemoryError):
            raise MemoryError from errors
        raise BrokenRunError(f"{len(errors.exceptions)} requests failed") from errors
    wall_s = run.now()
    cpu_s = time.process_time() - cpu_before
    served = [task.result() for task in tasks]
    return _outcome(asks, served, wall_s, cpu_s)


class _Run:
    """Requests on their way, and the time since the first."""

    def __init__(self, engine: Engine, turns: asyncio.Semaphore, clock: Clock) -> None:
        self._engine, self._turns, self._clock = engine, turns, clock
        self._start = clock.now()
        self._n_open = 0

    def now(self) -> float:
        return self._clock.now() - self._start

    async def arrival(self, at_s: float) -> None:
        """Wait for the moment at which a request may come."""
        await self._clock.until(self._start + at_s, lambda: self._n_open == 0)

    async def serve(
        self, request: GenerateRequest, *, in_turn: bool
    ) -> tuple[_Timing, tuple[int, ...]]:
        """Ask one request. in_turn: it comes when its turn does, as in a closed loop."""
        self._n_open += 1
        timing = _Timing(came=self.now())
        async with self._turns:
            if in_turn:
                timing.came = self.now()
            answer: list[int] = []
            async for choice in self._engine.generate(request):
                if choice.token_ids and not answer:
                    timing.first = self.now()
                answer += choice.token_ids
                if choice.finish_reason == "abort":
                    raise BrokenRunError("the engine gave up on a request")
            timing.last = self.now()
        self._n_open -= 1
        return timing, tuple(answer)


def _outcome(
    asks: Sequence[Ask],
    served: Sequence[tuple[_Timing, tuple[int, ...]]],
    wall_s: float,
    cpu_s: float,
) -> Outcome:
    timings = [timing for timing, _ in served]
    answers = tuple(answer for _, answer in served)
    n_tokens = sum(map(len, answers))
    firsts = np.array([one.first - one.came for one in timings])
    rests = [
        (one.last - one.first) / (len(answer) - 1)
        for one, answer in zip(timings, answers, strict=True)
        if len(answer) > 1
    ]
    guessed = [
        share_guessed(ask.token_ids, answer) for ask, answer in zip(asks, answers, strict=True)
    ]
    return Outcome(
        latency_s=float(np.mean([one.last - one.came for one in timings])),
        ttft_p50_s=float(np.median(firsts)),
        ttft_p99_s=float(np.quantile(firsts, 0.99)),
        tpot_s=float(np.mean(rests)) if rests else 0.0,
        tokens_per_s=n_tokens / wall_s,
        cpu_s_per_token=cpu_s / n_tokens,
        peak_rss_bytes=float(psutil.Process().memory_info().rss),
        repetition=float(np.mean(guessed)),
        answers=answers,
    )


def _request(ask: Ask, salt: str) -> GenerateRequest:
    params = SamplingParams(
        max_tokens=ask.answer_tokens,
        temperature=1.0 if ask.sampled else 0.0,
        seed=0 if ask.sampled else None,
        ignore_eos=True,  # every arm makes as many tokens
    )
    return GenerateRequest(ask.token_ids, params, stream=True, cache_salt=salt)
