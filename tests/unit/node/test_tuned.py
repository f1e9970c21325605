"""From arms to engines: every arm runs, exact ones exactly; what vLLM cannot run is refused."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from unit.node.subjects import GREEDY, collect, plain_greedy, plain_model, write_tiny_llama
from veilrun.errors import UsageError
from veilrun.node import model_run
from veilrun.node.tuned import engine_for, run_of, vllm_options
from veilrun.tune.arms import ARMS, VLLM_ARMS, Arm, by_name
from veilrun.wire.generate import GenerateRequest

PROMPTS = [(1, 5, 9), (5, 6, 7, 8) * 8, tuple(range(3, 43)), (*range(3, 43), 8)]
COMPILED = [arm.name for arm in ARMS if arm.compiled]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def draft(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("draft"), seed=3)


@pytest.fixture(scope="module")
def expected(folder: Path) -> list[list[int]]:
    plain = plain_model(folder)
    return [plain_greedy(plain, prompt, GREEDY.max_tokens) for prompt in PROMPTS]


async def answers_of(arm: Arm, folder: Path, draft: Path, **options: Any) -> list[list[int]]:
    engine = engine_for(arm, folder, device="cpu", max_model_len=128, draft=draft, **options)
    assert engine.limits.max_model_len == 128
    await engine.start()
    try:
        requests = [GenerateRequest(one, GREEDY, cache_salt="a") for one in PROMPTS]
        answers = await asyncio.gather(*(collect(engine, one) for one in requests))
    finally:
        await engine.stop()
    return [list(one[0].token_ids) for one in answers]


@pytest.mark.parametrize("arm", [arm for arm in ARMS if not arm.compiled], ids=lambda a: a.name)
async def test_every_arm_answers_and_exact_arms_exactly(
    arm: Arm, folder: Path, draft: Path, expected: list[list[int]]
) -> None:
    answers = await answers_of(arm, folder, draft)
    if arm.is_exact:
        assert answers == expected
    else:
        assert [len(one) for one in answers] == [GREEDY.max_tokens] * len(PROMPTS)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPILED)
async def test_compiled_arms_answer_exactly(
    name: str, folder: Path, draft: Path, expected: list[list[int]]
) -> None:
    assert await answers_of(by_name(name), folder, draft) == expected


async def test_engines_may_share_one_model(
    folder: Path, draft: Path, expected: list[list[int]]
) -> None:
    names = ("continuous-16", "single-prefix", "single-eager", "static-16", "single-lookup")
    model = model_run.load(folder, run_of(ARMS[0], device="cpu"))
    untouched = dict(vars(model))
    for arm in map(by_name, (*names, *reversed(names))):
        assert await answers_of(arm, folder, draft, load=lambda: model) == expected
    assert vars(model).keys() == untouched.keys()
    assert model.generation_config is untouched["generation_config"]


def test_arms_become_settings(folder: Path) -> None:
    chunked = engine_for(replace(ARMS[0], chunk_tokens=64), folder)
    assert chunked._plan.max_batch_tokens == 64  # type: ignore[attr-defined]
    eager = Arm("eager", "static", attention="eager", n_threads=1)
    assert (run_of(eager).attention, run_of(eager).n_threads) == ("eager", 1)


@pytest.mark.parametrize(
    "arm",
    [
        Arm("x", "static", 4, prefix_cache=True),
        Arm("x", "continuous", 4, compiled=True),
        Arm("x", "continuous", 4, prefix_cache=True),
        Arm("x", "continuous", 4, speculation="prompt-lookup"),
        Arm("x", "static", speculation="draft"),
    ],
)
def test_arms_that_cannot_run_are_usage_errors(arm: Arm, folder: Path) -> None:
    with pytest.raises(UsageError, match="arm x"):
        engine_for(arm, folder)


def test_vllm_gets_an_option_for_each_part() -> None:
    options = vllm_options(Arm("x", "continuous", 16, chunk_tokens=64), max_model_len=512)
    assert (options.max_num_seqs, options.max_model_len) == (16, 512)
    assert options.extra_arguments == (
        "--no-enable-prefix-caching", "--max-num-batched-tokens=64", "--enforce-eager",
    )  # fmt: skip
    full = Arm("x", "continuous", 4, prefix_cache=True, speculation="prompt-lookup", compiled=True)
    prefix, speculation = vllm_options(full).extra_arguments
    assert prefix == "--enable-prefix-caching"
    assert speculation == (
        '--speculative-config={"method":"ngram","num_speculative_tokens":8,'
        '"prompt_lookup_max":2,"prompt_lookup_min":1}'
    )


@pytest.mark.parametrize(
    ("arm", "reason"),
    [
        (Arm("x", "static", 4), "continuously"),
        (Arm("x", "static", kv_cache=False), "continuously"),
        (Arm("x", "continuous", 4, kv_cache=False), "keys and values"),
        (Arm("x", "continuous", 4, weights="int8"), "weights"),
        (Arm("x", "continuous", 4, attention="eager"), "attention"),
        (Arm("x", "continuous", 4, n_threads=1), "threads"),
        (Arm("x", "continuous", 4, speculation="draft"), "draft"),
    ],
)
def test_what_vllm_cannot_run_is_refused_by_name(arm: Arm, reason: str) -> None:
    with pytest.raises(UsageError, match=f"arm x.*{reason}"):
        vllm_options(arm)


def test_every_arm_of_vllm_has_options() -> None:
    for arm in VLLM_ARMS:
        assert vllm_options(arm).max_num_seqs == arm.max_running
