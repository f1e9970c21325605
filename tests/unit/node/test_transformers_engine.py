"""The built-in engine against plain transformers: same tokens, same log-probabilities, and
nothing that one request does shows in another."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import torch

from unit.node.subjects import (
    END_ID,
    GREEDY,
    VOCAB_SIZE,
    collect,
    plain_greedy,
    plain_model,
    write_tiny_llama,
)
from veilrun.errors import BusyError
from veilrun.node import transformers_engine
from veilrun.node.capacity import Capacity
from veilrun.node.transformers_engine import TransformersEngine, TransformersSettings
from veilrun.wire.generate import GenerateRequest, SamplingParams

pytestmark = pytest.mark.asyncio(loop_scope="module")
PROMPTS = [(1, 5, 9), (7,), tuple(range(3, 43)), (1, 90, 4, 4, 4, 31)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def plain(folder: Path) -> Any:
    return plain_model(folder)


@asynccontextmanager
async def started(folder: Path, **settings: Any) -> AsyncIterator[TransformersEngine]:
    engine = TransformersEngine(folder, TransformersSettings(**settings))
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(folder: Path) -> AsyncIterator[TransformersEngine]:
    async with started(folder, max_running=8) as engine:
        yield engine


async def until(condition: Any, timeout_s: float = 5.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.01)


async def test_limits_come_from_the_configuration(engine: TransformersEngine) -> None:
    assert (engine.limits.vocab_size, engine.limits.max_model_len) == (VOCAB_SIZE, 256)
    assert engine.limits.max_n == 8
    assert engine.ready


@pytest.mark.parametrize("stream", [False, True])
async def test_greedy_answers_equal_plain_generation(
    engine: TransformersEngine, plain: Any, stream: bool
) -> None:
    requests = [GenerateRequest(prompt, GREEDY, stream=stream) for prompt in PROMPTS]
    answers = await asyncio.gather(*(collect(engine, one) for one in requests))
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        assert list(answer[0].token_ids) == plain_greedy(plain, prompt, GREEDY.max_tokens)
        assert answer[0].finish_reason == "length"


async def test_prompts_longer_than_a_batch_are_read_in_pieces(folder: Path, plain: Any) -> None:
    """Rows of answers still reading their prompt must not shift those of the others."""
    engine = TransformersEngine(folder, TransformersSettings(max_running=4))
    engine._plan = replace(engine._plan, max_batch_tokens=16)
    await engine.start()
    try:
        prompts = [tuple(3 + (i * k) % 90 for i in range(60)) for k in (1, 7, 11)]
        sampled = SamplingParams(seed=3, max_tokens=8, ignore_eos=True, logprobs=0)
        requests = [GenerateRequest(one, GREEDY, stream=True) for one in prompts]
        requests.append(GenerateRequest(PROMPTS[0], replace(sampled, max_tokens=40)))
        requests.append(GenerateRequest(prompts[1], sampled, stream=True))
        *greedy, early, late = await asyncio.gather(*(collect(engine, one) for one in requests))
        for prompt, answer in zip(prompts, greedy, strict=True):
            assert list(answer[0].token_ids) == plain_greedy(plain, prompt, GREEDY.max_tokens)
        for prompt, answer in ((PROMPTS[0], early[0]), (prompts[1], late[0])):
            check_logprobs(plain, prompt, answer, n_top=0)
    finally:
        await engine.stop()


def check_logprobs(plain: Any, prompt: tuple[int, ...], answer: Any, n_top: int) -> None:
    with torch.no_grad():
        ids = torch.tensor([[*prompt, *answer.token_ids]])
        expected = plain(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    assert len(answer.logprobs) == len(answer.token_ids)
    for token_id, row, position in zip(answer.token_ids, expected, answer.logprobs, strict=True):
        assert position.chosen.token_id == token_id
        assert position.chosen.logprob == pytest.approx(row[token_id].item(), abs=1e-4)
        # Rounding may swap neighbours, so the rank is compared where they are apart.
        above = int((row > row[token_id] + 1e-4).sum())
        below = int((row > row[token_id] - 1e-4).sum())
        assert above + 1 <= position.chosen.rank <= max(below, above + 1)
        values, _ = row.topk(n_top)
        assert [one.logprob for one in position.top] == pytest.approx(values.tolist(), abs=1e-4)


async def test_logprobs_equal_those_of_plain_logits(engine: TransformersEngine, plain: Any) -> None:
    """Of the model's own distribution, whatever the temperature and the bias."""
    params = SamplingParams(
        temperature=1.7, top_k=20, seed=1, max_tokens=10, ignore_eos=True, logprobs=5,
        logit_bias={3: 2.0}, presence_penalty=0.5,
    )  # fmt: skip
    for stream in (False, True):
        answer = await collect(engine, GenerateRequest(PROMPTS[0], params, stream=stream))
        check_logprobs(plain, PROMPTS[0], answer[0], n_top=5)


async def test_same_seed_same_answer_alone_or_in_company(engine: TransformersEngine) -> None:
    params = SamplingParams(seed=11, top_p=0.9, max_tokens=16, ignore_eos=True)
    request = GenerateRequest(PROMPTS[0], params)
    alone = await collect(engine, request)
    company = [GenerateRequest(PROMPTS[1], replace(params, seed=None)), request]
    _, again = await asyncio.gather(*(collect(engine, one) for one in company))
    assert again == alone
    other = await collect(engine, replace(request, sampling_params=replace(params, seed=12)))
    assert other != alone


async def test_n_answers_are_those_of_consecutive_seeds(engine: TransformersEngine) -> None:
    params = SamplingParams(seed=20, n=3, max_tokens=10, ignore_eos=True)
    together = await collect(engine, GenerateRequest(PROMPTS[0], params, stream=True))
    assert sorted(together) == [0, 1, 2]
    for index in range(3):
        single = replace(params, seed=20 + index, n=1)
        alone = await collect(engine, GenerateRequest(PROMPTS[0], single))
        assert together[index].token_ids == alone[0].token_ids


async def test_end_id_ends_and_has_no_stop_reason(engine: TransformersEngine) -> None:
    params = SamplingParams(temperature=0.0, logit_bias={END_ID: 1e4}, max_tokens=5)
    (answer,) = (await collect(engine, GenerateRequest((5,), params))).values()
    assert (answer.token_ids, answer.finish_reason) == ((END_ID,), "stop")
    assert answer.stop_reason is None


async def test_ignored_end_id_does_not_end(engine: TransformersEngine) -> None:
    params = SamplingParams(
        temperature=0.0, logit_bias={END_ID: 1e4}, max_tokens=5, ignore_eos=True
    )
    (answer,) = (await collect(engine, GenerateRequest((5,), params))).values()
    assert (answer.token_ids, answer.finish_reason) == ((END_ID,) * 5, "length")


async def test_stop_id_is_the_last_token_and_the_reason(
    engine: TransformersEngine, plain: Any
) -> None:
    expected = plain_greedy(plain, PROMPTS[0], 12)
    stop = expected[4]
    cut = expected[: expected.index(stop) + 1]
    params = replace(GREEDY, stop_token_ids=(stop, 95))
    for stream in (False, True):
        answer = (await collect(engine, GenerateRequest(PROMPTS[0], params, stream=stream)))[0]
        assert list(answer.token_ids) == cut
        assert (answer.finish_reason, answer.stop_reason) == ("stop", stop)


async def test_min_tokens_outlasts_the_end_id(engine: TransformersEngine) -> None:
    params = SamplingParams(temperature=0.0, logit_bias={END_ID: 1e4}, min_tokens=3, max_tokens=9)
    (answer,) = (await collect(engine, GenerateRequest((5,), params))).values()
    assert len(answer.token_ids) == 4
    assert answer.token_ids[-1] == END_ID
    assert END_ID not in answer.token_ids[:-1]


async def test_answers_are_cut_at_the_maximum_length(engine: TransformersEngine) -> None:
    prompt = tuple(1 + i % 90 for i in range(250))
    answer = await collect(engine, GenerateRequest(prompt, replace(GREEDY, max_tokens=1000)))
    assert len(answer[0].token_ids) == 6
    assert answer[0].finish_reason == "length"


async def test_stream_gives_every_token_as_it_comes(engine: TransformersEngine) -> None:
    params = replace(GREEDY, max_tokens=30)
    pieces = [p async for p in engine.generate(GenerateRequest((5,), params, stream=True))]
    assert len(pieces) > 10
    assert [one.finish_reason for one in pieces[:-1]] == [None] * (len(pieces) - 1)


async def test_closing_the_generator_takes_the_answer_out_of_the_batch(
    engine: TransformersEngine,
) -> None:
    request = GenerateRequest((5,), replace(GREEDY, max_tokens=250, n=2), stream=True)
    async with aclosing(engine.generate(request)) as pieces:
        await anext(pieces)
        assert engine.n_active == 2
    await until(lambda: engine.n_active == 0)
    batch = engine._batch
    assert batch is not None
    assert not batch._sampler.answers
    assert not batch._manager.output_router.result_handlers


async def test_nothing_is_kept_of_answers_that_ended(engine: TransformersEngine) -> None:
    await collect(engine, GenerateRequest((5,), SamplingParams(seed=1, max_tokens=3)))
    batch = engine._batch
    assert batch is not None
    assert not batch._sampler.answers
    assert not batch._manager.output_router.result_handlers
    assert not engine._runs
    assert engine._room.n_on_loan == 0


async def test_more_answers_than_the_cache_holds_wait_their_turn(folder: Path, plain: Any) -> None:
    """A cache for one full answer, six requests: nobody is evicted, nobody is lost."""
    async with started(folder, max_running=4, max_model_len=64, cache_bytes=500_000) as engine:
        assert engine._plan.n_pages < 4 * 2
        assert engine.limits.max_n < 4
        params = replace(GREEDY, max_tokens=40)
        prompts = [(1, 5 + i, 9) for i in range(6)]
        answers = await asyncio.gather(
            *(collect(engine, GenerateRequest(one, params)) for one in prompts)
        )
        for prompt, answer in zip(prompts, answers, strict=True):
            assert list(answer[0].token_ids) == plain_greedy(plain, prompt, 40)


@pytest.mark.parametrize("reserved", [True, False])
async def test_one_that_leaves_a_full_cache_takes_nobody_along(
    folder: Path, plain: Any, reserved: bool
) -> None:
    """Without reservations one answer is evicted; the stock engine alone never resumes it."""
    async with started(folder, max_running=2, max_model_len=112, cache_bytes=420_000) as engine:
        assert engine._plan.n_pages == 4  # as many as one full answer takes
        evictions = count_evictions(engine)
        if not reserved:
            engine._room = Capacity(1000)
        request = GenerateRequest((5,), replace(GREEDY, max_tokens=100), stream=True)
        stays = asyncio.create_task(collect(engine, request))
        await until(lambda: engine.n_active == 1)
        async with aclosing(engine.generate(request)) as leaves:
            n_read = 0
            async for piece in leaves:
                n_read += len(piece.token_ids)
                if n_read > 80:
                    break
        async with asyncio.timeout(10):
            answer = (await stays)[0]
        assert list(answer.token_ids) == plain_greedy(plain, (5,), 100)
        assert bool(evictions) is not reserved


def count_evictions(engine: TransformersEngine) -> list[None]:
    """A list that grows with every eviction."""
    assert engine._batch is not None
    stock = engine._batch._manager.batch_processor.offloading_manager
    evict, evictions = stock.offload_requests, []

    def counted() -> bool:
        evictions.append(None)
        return bool(evict())

    stock.offload_requests = counted
    return evictions


async def test_broken_engine_aborts_what_runs_and_comes_back(folder: Path, plain: Any) -> None:
    """An id outside the vocabulary, past `admit`, is how a run is broken."""
    async with started(folder) as engine:
        running = GenerateRequest((5,), replace(GREEDY, max_tokens=200), stream=True)
        pieces = engine.generate(running)
        await anext(pieces)
        poison = await collect(engine, GenerateRequest((VOCAB_SIZE + 7,), GREEDY))
        assert poison[0].finish_reason == "abort"
        rest = [one async for one in pieces]
        assert rest[-1].finish_reason == "abort"
        assert not engine.ready
        with pytest.raises(BusyError):
            await collect(engine, GenerateRequest((5,), GREEDY))
        await until(lambda: engine.ready)
        answer = await collect(engine, GenerateRequest(PROMPTS[0], GREEDY))
        assert list(answer[0].token_ids) == plain_greedy(plain, PROMPTS[0], GREEDY.max_tokens)


async def test_a_restart_that_fails_in_any_way_is_tried_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(transformers_engine, "_RESTART_S", 0.01)
    async with started(folder) as engine:
        launch, failures = engine._launch, [OSError("secret"), ValueError("secret")]

        async def fail_first() -> None:
            if failures:
                raise failures.pop()
            await launch()

        monkeypatch.setattr(engine, "_launch", fail_first)
        await collect(engine, GenerateRequest((VOCAB_SIZE + 7,), GREEDY))
        await until(lambda: not failures and engine.ready)
        assert engine._watcher is not None and not engine._watcher.done()
    for kind in ("ValueError", "OSError"):
        assert f"failed: {kind}" in caplog.text
    assert "secret" not in caplog.text


async def test_a_run_that_cannot_be_asked_is_replaced(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with started(folder) as engine:
        first = engine._batch

        def fail() -> None:
            raise AttributeError("secret")

        monkeypatch.setattr(first, "unblock", fail)
        await until(lambda: engine._batch is not first and engine.ready)
    assert "the run cannot be asked: AttributeError" in caplog.text


async def test_stop_aborts_what_runs(folder: Path) -> None:
    async with started(folder) as engine:
        running = GenerateRequest((5,), replace(GREEDY, max_tokens=250, n=2))
        task = asyncio.create_task(collect(engine, running))
        await until(lambda: engine.n_active == 2)
        await engine.stop()
        answers = await task
        assert [one.finish_reason for one in answers.values()] == ["abort", "abort"]
        assert not engine.ready
        with pytest.raises(BusyError):
            await collect(engine, GenerateRequest((5,), GREEDY))
