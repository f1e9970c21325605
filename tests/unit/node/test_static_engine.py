"""The engine of one batch at a time against plain generation and against continuous batching."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import models
import pytest
import transformers

from unit.node.subjects import (
    END_ID,
    GREEDY,
    VOCAB_SIZE,
    collect,
    plain_greedy,
    plain_model,
    write_tiny_llama,
)
from veilrun.errors import BusyError, UsageError
from veilrun.node import static_worker
from veilrun.node.model_run import ModelRun
from veilrun.node.static_batch import StaticModel
from veilrun.node.static_engine import StaticEngine, StaticSettings
from veilrun.node.transformers_engine import TransformersEngine, TransformersSettings
from veilrun.wire.generate import GenerateRequest, SamplingParams

PROMPTS = [(1, 5, 9), (7,), tuple(range(3, 43)), (1, 90, 4, 4, 4, 31)]
REPETITIVE = (5, 6, 7, 8, 9) * 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def draft(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("draft"), seed=3)


@pytest.fixture(scope="module")
def plain(folder: Path) -> Any:
    return plain_model(folder)


@asynccontextmanager
async def running(engine: Any) -> AsyncIterator[Any]:
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


def static(folder: Path, **settings: Any) -> Any:
    return running(StaticEngine(folder, StaticSettings(**settings)))


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows with every batch: its requests."""
    sizes: list[int] = []
    run = StaticModel.run

    def noted(self: StaticModel, jobs: Any, stopping: threading.Event) -> None:
        sizes.append(len(jobs))
        run(self, jobs, stopping)

    monkeypatch.setattr(StaticModel, "run", noted)
    return sizes


async def until(condition: Any, timeout_s: float = 5.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("max_running", [1, 3, 16])
async def test_each_of_a_batch_gets_the_answer_it_would_get_alone(
    folder: Path, plain: Any, max_running: int, stream: bool
) -> None:
    async with static(folder, max_running=max_running) as engine:
        lengths = (12, 30, 5, 1)
        answers = await asyncio.gather(
            *(
                collect(engine, GenerateRequest(one, replace(GREEDY, max_tokens=n), stream=stream))
                for one, n in zip(PROMPTS, lengths, strict=True)
            )
        )
    for prompt, n, answer in zip(PROMPTS, lengths, answers, strict=True):
        assert list(answer[0].token_ids) == plain_greedy(plain, prompt, n)
        assert answer[0].finish_reason == "length"


async def test_requests_that_wait_are_run_together(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = counted(monkeypatch)
    async with static(folder, max_running=3) as engine:
        requests = [GenerateRequest(one, GREEDY) for one in PROMPTS]
        await asyncio.gather(*(collect(engine, one) for one in requests))
    assert sizes == [1, 3, 1]  # the first is the engine's own


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "mistral-sliding", "qwen3_moe", "phi3"])
@pytest.mark.parametrize("speculation", ["none", "prompt-lookup"])
async def test_families_answer_as_plain_generation_does(
    tmp_path: Path, name: str, speculation: Any
) -> None:
    """Lengths that add up to more than the model has positions: learned ones would break."""
    models.save_random(name, tmp_path)
    plain = models.load(tmp_path)
    max_running = 4 if speculation == "none" else 1
    prompts = [(5, 9), tuple(range(3, 53)), (4, 5, 6) * 5]
    params = SamplingParams(temperature=0.0, max_tokens=60, ignore_eos=True)
    run = ModelRun(attention="eager" if name == "gemma2" else "sdpa")  # it has nothing else
    settings = StaticSettings(max_running=max_running, speculation=speculation, run=run)
    async with running(StaticEngine(tmp_path, settings)) as engine:
        answers = await asyncio.gather(
            *(collect(engine, GenerateRequest(one, params)) for one in prompts)
        )
    for prompt, answer in zip(prompts, answers, strict=True):
        n_new = min(60, 64 - len(prompt))
        assert list(answer[0].token_ids) == plain_greedy(plain, prompt, n_new)


@pytest.mark.parametrize("how", ["prompt-lookup", "draft", "same draft"])
async def test_guessing_ahead_leaves_the_answer_as_it_is(
    folder: Path, draft: Path, plain: Any, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    n_steps = count_steps(monkeypatch)
    if how == "prompt-lookup":
        settings: dict[str, Any] = {"speculation": "prompt-lookup"}
    else:
        settings = {"speculation": "draft", "draft": folder if how == "same draft" else draft}
    n_new = 24 if how == "draft" else 80
    params = replace(GREEDY, max_tokens=n_new)
    prompts = [*PROMPTS, REPETITIVE]
    async with static(folder, **settings) as engine:
        n_steps.clear()
        for prompt in prompts:
            answer = await collect(engine, GenerateRequest(prompt, params, stream=True))
            assert list(answer[0].token_ids) == plain_greedy(plain, prompt, n_new)
    if how != "draft":
        assert len(n_steps) < n_new * len(prompts) - 10  # guesses were right, and taken


def count_steps(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """A list that grows with every step of a batch."""
    from veilrun.node import static_batch

    steps: list[None] = []
    see = static_batch._Watch.__call__

    def noted(self: Any, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        steps.append(None)
        return see(self, input_ids, scores, **kwargs)

    monkeypatch.setattr(static_batch._Watch, "__call__", noted)
    return steps


@pytest.mark.parametrize("speculation", ["none", "prompt-lookup"])
@pytest.mark.parametrize("stream", [False, True])
async def test_stop_id_is_the_last_token_and_the_reason(
    folder: Path, plain: Any, speculation: Any, stream: bool
) -> None:
    expected = plain_greedy(plain, REPETITIVE, 40)
    stop = expected[20]
    cut = expected[: expected.index(stop) + 1]
    params = replace(GREEDY, max_tokens=40, stop_token_ids=(stop, 95))
    async with static(folder, speculation=speculation) as engine:
        request = GenerateRequest(REPETITIVE, params, stream=stream)
        answer = (await collect(engine, request))[0]
    assert list(answer.token_ids) == cut
    assert (answer.finish_reason, answer.stop_reason) == ("stop", stop)


async def test_end_id_ends_unless_ignored(folder: Path) -> None:
    params = SamplingParams(temperature=0.0, logit_bias={END_ID: 1e4}, max_tokens=5)
    async with static(folder) as engine:
        answer = (await collect(engine, GenerateRequest((5,), params)))[0]
        assert (answer.token_ids, answer.finish_reason) == ((END_ID,), "stop")
        assert answer.stop_reason is None
        ignored = replace(params, ignore_eos=True)
        answer = (await collect(engine, GenerateRequest((5,), ignored)))[0]
        assert (answer.token_ids, answer.finish_reason) == ((END_ID,) * 5, "length")
        later = replace(params, min_tokens=3, max_tokens=9)
        answer = (await collect(engine, GenerateRequest((5,), later)))[0]
        assert len(answer.token_ids) == 4


@pytest.mark.parametrize("speculation", ["none", "prompt-lookup"])
async def test_sampled_answers_are_those_of_continuous_batching(
    folder: Path, speculation: Any
) -> None:
    params = SamplingParams(
        n=2, seed=11, top_p=0.9, presence_penalty=0.3, max_tokens=16, ignore_eos=True, logprobs=2
    )
    request = GenerateRequest(PROMPTS[0], params)
    async with running(TransformersEngine(folder, TransformersSettings())) as other:
        expected = await collect(other, request)
    async with static(folder, speculation=speculation) as engine:
        answers = await collect(engine, replace(request, stream=True))
    assert sorted(answers) == [0, 1]
    assert answers[0].token_ids != answers[1].token_ids
    for index, answer in answers.items():
        assert answer.token_ids == expected[index].token_ids
        assert len(answer.logprobs) == 16
        for ours, theirs in zip(answer.logprobs, expected[index].logprobs, strict=True):
            assert ours.chosen.logprob == pytest.approx(theirs.chosen.logprob, abs=1e-4)


async def test_the_folders_own_way_of_sampling_is_not_used(tmp_path: Path) -> None:
    """Its generation config would penalise, warm up and end answers behind the client's back."""
    write_tiny_llama(tmp_path)
    own = transformers.GenerationConfig(
        do_sample=True, temperature=5.0, repetition_penalty=3.0, eos_token_id=list(range(96)),
        suppress_tokens=list(range(50)),
    )  # fmt: skip
    own.save_pretrained(tmp_path)
    async with static(tmp_path) as engine:
        answer = (await collect(engine, GenerateRequest(PROMPTS[0], GREEDY)))[0]
    assert list(answer.token_ids) == plain_greedy(plain_model(tmp_path), PROMPTS[0], 12)


async def test_stream_gives_every_token_as_it_comes(folder: Path) -> None:
    async with static(folder) as engine:
        request = GenerateRequest((5,), replace(GREEDY, max_tokens=30), stream=True)
        pieces = [piece async for piece in engine.generate(request)]
    assert len(pieces) > 10
    assert [one.finish_reason for one in pieces[:-1]] == [None] * (len(pieces) - 1)


async def test_closing_the_generator_ends_the_work(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = count_steps(monkeypatch)
    async with static(folder) as engine:
        steps.clear()
        long = GenerateRequest((5,), replace(GREEDY, max_tokens=250), stream=True)
        async with aclosing(engine.generate(long)) as pieces:
            await anext(pieces)
            async with aclosing(engine.generate(long)) as waiting:
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(anext(waiting), 0.001)
        assert engine.n_active == 0
        await collect(engine, GenerateRequest((5,), replace(GREEDY, max_tokens=2)))
        assert len(steps) < 250


async def test_a_batch_of_requests_that_were_given_up_is_not_the_end(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = counted(monkeypatch)
    monkeypatch.setattr(static_worker, "_GATHER_S", 0.1)
    async with static(folder, max_running=2) as engine:
        pieces = engine.generate(GenerateRequest((5,), GREEDY))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(pieces), 0.02)  # while the batch waits for company
        await asyncio.sleep(0.2)
        assert engine.ready
        answer = await collect(engine, GenerateRequest((5,), GREEDY))
        assert answer[0].finish_reason == "length"
    assert sizes == [1, 1]


async def test_one_that_leaves_a_batch_takes_nobody_along(folder: Path, plain: Any) -> None:
    async with static(folder, max_running=2) as engine:
        request = GenerateRequest((5,), replace(GREEDY, max_tokens=100), stream=True)
        stays = asyncio.create_task(collect(engine, request))
        async with aclosing(engine.generate(replace(request, token_ids=(9, 9)))) as leaves:
            await anext(leaves)
        answer = (await stays)[0]
    assert list(answer.token_ids) == plain_greedy(plain, (5,), 100)


async def test_an_error_aborts_its_batch_and_the_engine_goes_on(
    folder: Path, plain: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """An id outside the vocabulary, past `admit`, is how a batch is broken."""
    poison = GenerateRequest((VOCAB_SIZE + 7,), replace(GREEDY, n=2))
    async with static(folder) as engine:
        for _ in range(2):
            answers = await collect(engine, poison)
            assert [one.finish_reason for one in answers.values()] == ["abort", "abort"]
        assert engine.ready
        answer = await collect(engine, GenerateRequest(PROMPTS[0], GREEDY))
        assert list(answer[0].token_ids) == plain_greedy(plain, PROMPTS[0], 12)
        waits = [asyncio.create_task(collect(engine, poison)) for _ in range(4)]
        ends = [choice.finish_reason for one in waits for choice in (await one).values()]
        assert ends == ["abort"] * 8
        await until(lambda: not engine.ready)
        with pytest.raises(BusyError):
            await collect(engine, GenerateRequest(PROMPTS[0], GREEDY))
    assert str(VOCAB_SIZE + 7) not in caplog.text


async def test_stop_aborts_what_runs_and_what_waits(folder: Path) -> None:
    async with static(folder) as engine:
        request = GenerateRequest((5,), replace(GREEDY, max_tokens=250, n=2))
        tasks = [asyncio.create_task(collect(engine, request)) for _ in range(2)]
        await until(lambda: engine.n_active == 4)
        await engine.stop()
        for task in tasks:
            assert [one.finish_reason for one in (await task).values()] == ["abort", "abort"]
        assert not engine.ready
        with pytest.raises(BusyError):
            await collect(engine, request)


async def test_rows_wait_rather_than_outgrow_the_cache(
    folder: Path, plain: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = counted(monkeypatch)
    async with static(folder, max_running=4) as engine:
        engine._worker._n_room_tokens = 100
        params = replace(GREEDY, max_tokens=30)
        requests = [GenerateRequest((1, 5 + i, 9), params) for i in range(4)]
        answers = await asyncio.gather(*(collect(engine, one) for one in requests))
    assert sizes == [1, 3, 1]
    for request, answer in zip(requests, answers, strict=True):
        assert list(answer[0].token_ids) == plain_greedy(plain, request.token_ids, 30)


@pytest.mark.parametrize(
    "settings",
    [
        {"max_running": 0},
        {"prefix_cache": True, "max_running": 2},
        {"prefix_cache": True, "kv_cache": False},
        {"speculation": "prompt-lookup", "kv_cache": False},
        {"speculation": "draft"},
        {"draft": Path("x")},
    ],
)
def test_settings_that_do_not_go_together_are_usage_errors(settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        StaticSettings(**settings)


async def test_a_draft_with_another_vocabulary_or_too_short_is_a_usage_error(
    folder: Path, tmp_path: Path
) -> None:
    short = write_tiny_llama(tmp_path / "short", max_len=64)
    with pytest.raises(UsageError, match="reads up to 64 tokens"):
        async with static(folder, speculation="draft", draft=short):
            pass
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "other")
    with pytest.raises(UsageError, match="vocabulary has 64 ids"):
        async with static(folder, speculation="draft", draft=tmp_path / "other"):
            pass
