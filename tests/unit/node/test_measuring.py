"""What a measure says of an engine whose delays are known, on a clock that jumps: no waiting, and
no tolerance but that of floats."""

from __future__ import annotations

import asyncio
import selectors
import time
from collections.abc import AsyncGenerator, Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from veilrun.errors import BusyError, UsageError
from veilrun.node import clocks, measuring
from veilrun.node.engine import EngineLimits
from veilrun.node.measuring import BrokenRunError, Outcome
from veilrun.tune.guessing import share_guessed
from veilrun.tune.workload import Ask
from veilrun.wire.generate import Choice, GenerateRequest

FIRST_S, NEXT_S = 0.5, 0.1


class Clock(selectors.DefaultSelector):
    """Time that passes only while everybody waits: then it jumps to when the first one wakes."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 1000.0

    def read(self) -> float:
        return self.now_s

    def select(self, timeout: float | None = None) -> Any:
        events = super().select(0)
        if not events:
            assert timeout is not None, "everybody waits for ever"
            self.now_s += timeout
        return events


class JumpingLoop(asyncio.SelectorEventLoop):
    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        super().__init__(clock)

    def time(self) -> float:
        return self.clock.now_s


class FakeEngine:
    """Answers with ids 0, 1, 2, ... at known moments.

    faults: first prompt id -> what happens to that request after its first token.
    """

    name = "fake"
    ready = True
    limits = EngineLimits(vocab_size=1000, max_model_len=512)

    def __init__(self, clock: Clock, faults: Mapping[int, Exception | str] | None = None) -> None:
        self.clock, self.faults, self.began_s = clock, faults or {}, clock.now_s
        self.requests: list[GenerateRequest] = []
        self.came_s: list[float] = []
        self.n_running = self.n_most = self.n_closed = 0

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Choice]:
        self.requests.append(request)
        self.came_s.append(self.clock.now_s - self.began_s)
        self.n_running += 1
        self.n_most = max(self.n_most, self.n_running)
        try:
            await asyncio.sleep(FIRST_S / 2)
            yield Choice(0, ())  # nothing yet: this is no first token
            await asyncio.sleep(FIRST_S / 2)
            n = request.sampling_params.max_tokens
            yield Choice(0, (0,), "length" if n == 1 else None)
            fault = self.faults.get(request.token_ids[0])
            if isinstance(fault, Exception):
                raise fault
            if fault:
                yield Choice(0, (), fault)
            for i in range(1, n):
                await asyncio.sleep(NEXT_S)
                yield Choice(0, (i,), "length" if i == n - 1 else None)
        finally:
            self.n_running -= 1
            self.n_closed += 1


def ask(n: int, at_s: float = 0.0, prompt: tuple[int, ...] = (7, 8), sampled: bool = False) -> Ask:
    return Ask(prompt, n, at_s, sampled)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    fake = SimpleNamespace(perf_counter=made.read, process_time=time.process_time)
    monkeypatch.setattr(measuring, "time", fake)
    monkeypatch.setattr(clocks, "time", fake)
    return made


def measure(
    engine: FakeEngine, asks: list[Ask], concurrency: int = 1, cutoff_s: float = 100.0
) -> Outcome:
    """One run; when it is over, however it ended, no request may still be in the engine."""

    async def work() -> Outcome:
        try:
            return await measuring.measure(engine, asks, concurrency, "salt", cutoff_s)
        finally:
            assert (engine.n_running, engine.n_closed) == (0, len(engine.requests))

    with asyncio.Runner(loop_factory=lambda: JumpingLoop(engine.clock)) as runner:
        return runner.run(work())


def test_one_request_is_timed_from_its_coming_to_its_last_token(clock: Clock):
    found = measure(FakeEngine(clock), [ask(4)])
    assert found.latency_s == pytest.approx(0.8)
    assert found.ttft_p50_s == found.ttft_p99_s == pytest.approx(0.5)
    assert found.tpot_s == pytest.approx(0.1)
    assert found.tokens_per_s == pytest.approx(4 / 0.8)
    assert found.answers == ((0, 1, 2, 3),)
    assert 0 <= found.cpu_s_per_token < 1
    assert 2**20 < found.peak_rss_bytes < 2**40


def test_means_are_over_requests_and_answers_keep_their_order(clock: Clock):
    found = measure(FakeEngine(clock), [ask(11), ask(1), ask(3)], concurrency=3)
    assert found.latency_s == pytest.approx((1.5 + 0.5 + 0.7) / 3)
    assert found.tpot_s == pytest.approx(0.1)  # of answers that have a second token
    assert [len(one) for one in found.answers] == [11, 1, 3]
    assert found.tokens_per_s == pytest.approx(15 / 1.5)


def test_answers_of_one_token_have_no_pace(clock: Clock):
    found = measure(FakeEngine(clock), [ask(1), ask(1)])
    assert found.tpot_s == 0
    assert found.latency_s == pytest.approx(0.5)


@pytest.mark.parametrize("concurrency", [1, 2, 3, 12])
def test_a_closed_loop_keeps_as_many_in_flight_as_it_says(clock: Clock, concurrency: int):
    """A request comes when its turn does: waiting for the turn is not its latency."""
    engine = FakeEngine(clock)
    found = measure(engine, [ask(6) for _ in range(12)], concurrency)
    assert engine.n_most == concurrency
    assert engine.came_s == pytest.approx([i // concurrency * 1.0 for i in range(12)])
    assert found.latency_s == pytest.approx(1.0)
    assert found.tokens_per_s == pytest.approx(6 * concurrency)


def test_open_arrivals_are_kept_and_no_one_waits(clock: Clock):
    engine = FakeEngine(clock)
    found = measure(engine, [ask(6, at_s) for at_s in (0.0, 0.25, 0.3, 4.0)], concurrency=4)
    assert engine.came_s == pytest.approx([0.0, 0.25, 0.3, 4.0])
    assert engine.n_most == 3
    assert found.latency_s == pytest.approx(1.0)
    assert found.tokens_per_s == pytest.approx(24 / 5.0)


def test_open_arrivals_that_find_no_place_wait_and_that_is_their_latency(clock: Clock):
    engine = FakeEngine(clock)
    found = measure(engine, [ask(6, at_s) for at_s in (0.0, 0.25, 0.3)], concurrency=1)
    assert engine.came_s == pytest.approx([0.0, 1.0, 2.0])
    assert engine.n_most == 1
    assert found.latency_s == pytest.approx((1.0 + 1.75 + 2.7) / 3)
    assert found.ttft_p50_s == pytest.approx(1.25)
    assert found.ttft_p99_s == pytest.approx(2.2, abs=0.02)


def test_the_cutoff_ends_everything_and_closes_every_generator(clock: Clock):
    engine = FakeEngine(clock)
    with pytest.raises(TimeoutError):
        measure(engine, [ask(20) for _ in range(6)], concurrency=2, cutoff_s=3.0)
    assert clock.now_s - engine.began_s == pytest.approx(3.0)
    assert len(engine.requests) == 4  # two were never begun


def test_a_run_that_just_fits_is_not_cut_off(clock: Clock):
    assert measure(FakeEngine(clock), [ask(6)], cutoff_s=1.01).latency_s == pytest.approx(1.0)


@pytest.mark.parametrize("fault", ["abort", BusyError("full"), RuntimeError("out of memory")])
def test_an_engine_that_gives_up_is_no_measure(clock: Clock, fault: Exception | str):
    engine = FakeEngine(clock, {99: fault})
    asks = [ask(20), ask(20, prompt=(99,)), ask(20), ask(20)]
    with pytest.raises(BrokenRunError, match="1 requests failed"):
        measure(engine, asks, concurrency=2)
    assert clock.now_s - engine.began_s < 1.0  # the others were not served to their end
    assert len(engine.requests) < 4


def test_requests_carry_the_salt_and_what_their_ask_says(clock: Clock):
    engine = FakeEngine(clock)
    measure(engine, [ask(3), ask(5, prompt=(1, 2, 3), sampled=True)], concurrency=2)
    greedy, drawn = engine.requests
    assert [one.cache_salt for one in engine.requests] == ["salt", "salt"]
    assert all(one.stream for one in engine.requests)
    assert (greedy.token_ids, drawn.token_ids) == ((7, 8), (1, 2, 3))
    params = [one.sampling_params for one in engine.requests]
    assert [one.max_tokens for one in params] == [3, 5]
    assert [one.temperature for one in params] == [0.0, 1.0]
    assert [one.seed for one in params] == [None, 0]
    assert all(one.ignore_eos and one.n == 1 for one in params)


@pytest.mark.parametrize("prompt", [(1000,), tuple(range(512))])
def test_what_the_engine_would_not_admit_is_never_asked(clock: Clock, prompt: tuple[int, ...]):
    engine = FakeEngine(clock)
    with pytest.raises(UsageError):
        measure(engine, [ask(3), ask(3, prompt=prompt)])
    assert engine.requests == []


def test_repetition_is_what_prompt_lookup_would_have_guessed(clock: Clock):
    copied, new = (50, *range(8), 50), (9,)
    asks = [ask(8, prompt=copied), ask(8, prompt=new)]
    found = measure(FakeEngine(clock), asks)
    share = share_guessed(copied, range(8))
    assert share > 0.5
    assert found.repetition == pytest.approx(share / 2)
