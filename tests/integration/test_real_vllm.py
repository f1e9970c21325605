"""The vLLM engine over a real vLLM and a real pretrained model, against transformers as oracle.

One vLLM serves the whole file. It needs the `vllm` command beside this Python or on PATH
(a CPU build will do); docs/vllm.md has the recipe. Without it everything here is skipped.
"""

from __future__ import annotations

import asyncio
import math
import os
import signal
import stat
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio
import torch
import transformers

from asking import answer, answers, pieces
from veilrun.errors import BusyError, UsageError
from veilrun.node.vllm_engine import VllmEngine, VllmOptions, vllm_available
from veilrun.wire.fields import INT64_MAX
from veilrun.wire.generate import MAX_LOGPROBS, GenerateRequest, SamplingParams
from wide_heads import widen_heads

if reason := vllm_available():
    pytest.skip(reason, allow_module_level=True)

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

PROMPTS = (
    (1,),
    (1, 403, 407),
    (1, 261, 378, 432, 383, 286),
    (1, *range(300, 340)),
    tuple(1 + (7 * i) % 500 for i in range(200)),
)
GREEDY = SamplingParams(temperature=0.0, max_tokens=32)
OPTIONS = VllmOptions(
    dtype="float32", max_num_seqs=16, start_timeout_s=400, extra_arguments=("--enforce-eager",)
)


@pytest.fixture(scope="module")
def folder(stories: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("vllm") / "model"
    widen_heads(stories, target)
    return target


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(folder: Path) -> AsyncIterator[VllmEngine]:
    engine = VllmEngine(folder, OPTIONS)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


def reference(model: Any, ids: tuple[int, ...], n_new: int) -> tuple[int, ...]:
    output = model.generate(torch.tensor([ids]), max_new_tokens=n_new, do_sample=False)
    return tuple(output[0, len(ids) :].tolist())


def family(engine: VllmEngine) -> list[psutil.Process]:
    return psutil.Process(engine._process.pid).children(recursive=True)


def cpu_s(processes: list[psutil.Process]) -> float:
    return sum(sum(one.cpu_times()[:2]) for one in processes)


# --- answers -----------------------------------------------------------------------------


async def test_greedy_ids_are_those_of_transformers(engine: VllmEngine, model: Any) -> None:
    for ids in PROMPTS:
        got = await answer(engine, ids, GREEDY)
        assert got.token_ids == reference(model, ids, 32)
        assert (got.finish_reason, got.stop_reason) == ("length", None)


async def test_requests_at_the_same_time_do_not_mix(engine: VllmEngine, model: Any) -> None:
    got = await asyncio.gather(*(answer(engine, ids, GREEDY) for ids in PROMPTS * 4))
    want = [reference(model, ids, 32) for ids in PROMPTS] * 4
    assert [one.token_ids for one in got] == want


async def test_tokens_come_one_by_one(engine: VllmEngine) -> None:
    got = await pieces(engine, PROMPTS[1], GREEDY)
    assert len(got) > 16
    assert [one.finish_reason for one in got] == [None] * (len(got) - 1) + ["length"]


async def test_a_stop_id_ends_the_answer_and_is_its_last_token(
    engine: VllmEngine, model: Any
) -> None:
    want = reference(model, PROMPTS[1], 32)
    stop_id = want[9]
    got = await answer(engine, PROMPTS[1], replace(GREEDY, stop_token_ids=(stop_id, 7)))
    assert got.token_ids == want[: want.index(stop_id) + 1]
    assert (got.finish_reason, got.stop_reason) == ("stop", stop_id)


async def test_the_models_own_end_id_is_known_without_a_tokenizer(engine: VllmEngine) -> None:
    pushed = replace(GREEDY, max_tokens=5, logit_bias={2: 100.0})
    got = await answer(engine, PROMPTS[1], pushed)
    assert (got.token_ids, got.finish_reason, got.stop_reason) == ((2,), "stop", None)
    got = await answer(engine, PROMPTS[1], replace(pushed, stop_token_ids=(2,)))
    assert (got.token_ids, got.finish_reason, got.stop_reason) == ((2,), "stop", 2)
    got = await answer(engine, PROMPTS[1], replace(pushed, ignore_eos=True))
    assert (got.token_ids, got.finish_reason) == ((2,) * 5, "length")
    got = await answer(engine, PROMPTS[1], replace(pushed, min_tokens=3))
    assert got.token_ids.index(2) == 3


async def test_logit_bias(engine: VllmEngine, model: Any) -> None:
    got = await answer(engine, PROMPTS[1], replace(GREEDY, logit_bias={77: 1e6}, max_tokens=4))
    assert got.token_ids == (77,) * 4
    first = reference(model, PROMPTS[1], 1)[0]
    got = await answer(engine, PROMPTS[1], replace(GREEDY, logit_bias={first: -1e6}))
    assert first not in got.token_ids


async def test_logprobs_are_the_models(engine: VllmEngine, model: Any) -> None:
    got = await answer(engine, PROMPTS[2], replace(GREEDY, logprobs=5))
    with torch.no_grad():
        logits = model(torch.tensor([PROMPTS[2] + got.token_ids])).logits[0]
    want = logits[len(PROMPTS[2]) - 1 : -1].double().log_softmax(-1)
    assert got.logprobs is not None and len(got.logprobs) == len(got.token_ids)
    for row, position in zip(want, got.logprobs, strict=True):
        best = row.topk(5)
        assert position.chosen == position.top[0]
        assert [one.token_id for one in position.top] == best.indices.tolist()
        assert [one.rank for one in position.top] == [1, 2, 3, 4, 5]
        # float32 over five layers: 1e-4 is a thousand times its step at these sizes
        assert [one.logprob for one in position.top] == pytest.approx(
            best.values.tolist(), abs=1e-4
        )


async def test_the_alternatives_are_the_best_whatever_was_chosen(engine: VllmEngine) -> None:
    wild = SamplingParams(temperature=2.0, max_tokens=200, seed=5, ignore_eos=True)
    ranks = set()
    for n_top in (0, 1, 3, MAX_LOGPROBS):
        got = await answer(engine, PROMPTS[1], replace(wild, logprobs=n_top))
        for position in got.logprobs or ():
            assert [one.rank for one in position.top] == list(range(1, n_top + 1))
            ranks.add(position.chosen.rank)
    assert max(ranks) > MAX_LOGPROBS  # or this test has shown nothing


async def test_several_answers_and_the_seed(engine: VllmEngine) -> None:
    wild = SamplingParams(temperature=1.5, max_tokens=24, n=2, seed=7, ignore_eos=True)
    first = await answers(engine, PROMPTS[1], wild)
    again = await answers(engine, PROMPTS[1], wild)
    other = await answers(engine, PROMPTS[1], replace(wild, seed=8))
    assert sorted(first) == [0, 1]
    assert first[0].token_ids != first[1].token_ids
    assert first == again
    assert first != other


async def test_an_answer_ends_with_the_context(engine: VllmEngine) -> None:
    assert engine.limits.max_model_len == 512
    endless = replace(GREEDY, max_tokens=INT64_MAX, min_tokens=100, ignore_eos=True)
    got = await answer(engine, tuple(range(1, 501)), endless)
    assert (len(got.token_ids), got.finish_reason) == (12, "length")
    got = await answer(engine, tuple(range(1, 512)), endless)
    assert (len(got.token_ids), got.finish_reason) == (1, "length")


@pytest.mark.parametrize(
    "extreme",
    [
        {"repetition_penalty": 1e-300},
        {"repetition_penalty": 1e-300, "logit_bias": {5: 1e6}, "logprobs": 5},
        {"logit_bias": dict.fromkeys(range(512), -1e6), "logprobs": 5},
        {"logit_bias": dict.fromkeys(range(512), 1e6)},
        {"presence_penalty": -2.0, "frequency_penalty": 2.0},
        {"top_k": INT64_MAX, "top_p": 1e-300, "min_p": 1.0},
        {"temperature": 0.01},
        {"seed": -INT64_MAX - 1},
        {"seed": INT64_MAX},
        {"n": 16, "logprobs": 20},
        {"stop_token_ids": tuple(range(100)), "min_tokens": 3},
    ],
    ids=str,
)
async def test_extremes_of_the_protocol_leave_the_engine_alive(
    engine: VllmEngine, extreme: dict[str, Any]
) -> None:
    params = SamplingParams(temperature=2.0, max_tokens=8, ignore_eos=True)
    got = await answers(engine, PROMPTS[1], replace(params, **extreme))
    assert all(one.token_ids for one in got.values())
    assert engine.ready


# --- refusals ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ids", "change", "named"),
    [
        ((512,), {}, "token_ids"),
        ((999_999,), {}, "token_ids"),
        ((1,), {"stop_token_ids": (512,)}, "stop_token_ids"),
        ((1,), {"logit_bias": {512: 1.0}}, "logit_bias"),
        ((1,) * 512, {}, "token_ids"),
        ((1,), {"n": 17, "temperature": 1.0}, "n:"),
        ((1,), {"n": 2}, "greedy"),
        ((1,), {"temperature": 3.0}, "temperature"),
        ((1,), {"temperature": 0.001}, "temperature"),
        ((1,), {"seed": -1}, "seed"),
    ],
)
async def test_what_cannot_be_done_never_reaches_vllm(
    engine: VllmEngine, ids: tuple[int, ...], change: dict[str, Any], named: str
) -> None:
    with pytest.raises(UsageError, match=named):
        await answer(engine, ids, replace(GREEDY, **change))
    assert engine.ready


async def test_what_vllm_refuses_is_a_usage_error(engine: VllmEngine) -> None:
    engine.limits, kept = replace(engine.limits, vocab_size=600), engine.limits
    try:
        with pytest.raises(UsageError, match=r"vLLM refused.*logit_bias"):
            await answer(engine, (1,), replace(GREEDY, logit_bias={555: 1.0}))
    finally:
        engine.limits = kept
    assert engine.ready


# --- life and death ----------------------------------------------------------------------


async def test_closing_the_generator_stops_the_request(engine: VllmEngine) -> None:
    endless = SamplingParams(temperature=1.0, max_tokens=500, n=16, ignore_eos=True)
    running = family(engine)
    choices = engine.generate(GenerateRequest(PROMPTS[1], endless))
    await anext(choices)
    await choices.aclose()
    await asyncio.sleep(1.0)
    before_s = cpu_s(running)
    await asyncio.sleep(1.0)
    idle_s = cpu_s(running) - before_s
    assert idle_s < 0.2  # one step after another would be near one second
    assert engine.ready


async def test_others_cannot_reach_it(engine: VllmEngine) -> None:
    folder = engine._process.folder
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    sockets = [path for path in folder.iterdir() if path.is_socket()]
    assert len(sockets) > 1  # the queues are in there too
    for process in family(engine):
        listening = [one for one in process.net_connections("inet") if one.status == "LISTEN"]
        assert all(one.laddr.ip == "127.0.0.1" for one in listening)
        assert engine._process.api_key not in " ".join(process.cmdline())
    leader = family(engine)[0]
    assert not [one for one in leader.net_connections("inet") if one.status == "LISTEN"]


async def test_without_the_key_nothing_is_generated(engine: VllmEngine) -> None:
    body = b'{"token_ids":[1],"sampling_params":{"max_tokens":1}}'
    headers = {"Authorization": "Bearer wrong"}
    async with engine._client._session.post(
        "/inference/v1/generate", data=body, headers=headers
    ) as refused:
        assert refused.status == 401


async def test_a_killed_vllm_ends_answers_and_comes_back(engine: VllmEngine, model: Any) -> None:
    old = engine._process
    endless = SamplingParams(temperature=1.0, max_tokens=500, n=3, ignore_eos=True, logprobs=1)
    choices = engine.generate(GenerateRequest(PROMPTS[1], endless))
    await anext(choices)
    leader, *workers = family(engine)
    os.kill(leader.pid, signal.SIGKILL)
    rest = [one async for one in choices]
    assert sorted(one.index for one in rest if one.finish_reason == "abort") == [0, 1, 2]
    with pytest.raises(BusyError):
        await answer(engine, PROMPTS[1], GREEDY)
    await until_ready(engine, since=old)
    assert not any(one.is_running() for one in workers)
    assert not old.folder.exists()
    got = await answer(engine, PROMPTS[1], GREEDY)
    assert got.token_ids == reference(model, PROMPTS[1], 32)


async def test_a_foreign_id_would_end_it(engine: VllmEngine) -> None:
    """Why `admit` exists. If this fails, vLLM has learned to check, which is good news."""
    old, kept = engine._process, engine.limits
    engine.limits = replace(kept, vocab_size=1_000_000)
    with pytest.raises(BusyError):
        await answer(engine, (999_999,), GREEDY)
    await until_ready(engine, since=old)
    engine.limits = kept


async def test_stop_ends_answers_and_leaves_nothing(engine: VllmEngine) -> None:
    """Last: the engine is down afterwards."""
    endless = SamplingParams(temperature=1.0, max_tokens=500, ignore_eos=True)
    choices = engine.generate(GenerateRequest(PROMPTS[1], endless))
    await anext(choices)
    processes, folder = family(engine), engine._process.folder
    begun_s = asyncio.get_running_loop().time()
    await engine.stop()
    # An open stream would keep vLLM from ending: it has to be closed before.
    assert asyncio.get_running_loop().time() - begun_s < OPTIONS.stop_grace_s / 2
    rest = [one async for one in choices]
    assert rest[-1].finish_reason == "abort"
    assert not any(one.is_running() for one in processes)
    assert not folder.exists()
    assert not engine.ready
    with pytest.raises(BusyError):
        await answer(engine, PROMPTS[1], GREEDY)


async def test_a_model_that_vllm_cannot_compute_fails_at_start(
    stories: Path, tmp_path: Path
) -> None:
    # vLLM loads heads of 8 channels and dies of the first token.
    for name in ("config.json", "generation_config.json", "model.safetensors"):
        (tmp_path / name).symlink_to(stories / name)
    engine = VllmEngine(tmp_path, OPTIONS)
    with pytest.raises(UsageError, match="Unsupported CPU attention") as failure:
        await engine.start()
    assert "last lines" in str(failure.value)
    assert engine._process is None and not engine.ready


async def test_a_killed_node_takes_vllm_with_it(folder: Path) -> None:
    script = (
        "import asyncio, sys\nfrom pathlib import Path\n"
        "from veilrun.node.vllm_engine import VllmEngine, VllmOptions\n"
        "async def main():\n"
        "    engine = VllmEngine(Path(sys.argv[1]), VllmOptions(stop_grace_s=5))\n"
        "    asyncio.create_task(engine.start())\n"
        "    await asyncio.sleep(600)\n"
        "asyncio.run(main())\n"
    )
    node = await asyncio.create_subprocess_exec(sys.executable, "-c", script, str(folder))
    leader = psutil.Process(node.pid)
    async with asyncio.timeout(120):
        while not any("EngineCore" in one.name() for one in leader.children(recursive=True)):
            await asyncio.sleep(0.2)
    children = leader.children(recursive=True)
    node.kill()
    await node.wait()
    _, alive = await asyncio.to_thread(psutil.wait_procs, children, timeout=30)
    assert not alive


async def until_ready(engine: VllmEngine, since: object) -> None:
    """Wait until another vLLM than `since` answers."""
    async with asyncio.timeout(OPTIONS.start_timeout_s):
        while engine._process is since or not engine.ready:
            await asyncio.sleep(0.1)


async def test_the_wider_model_is_the_same_function(stories: Path, model: Any) -> None:
    narrow = transformers.AutoModelForCausalLM.from_pretrained(stories, dtype=torch.float32).eval()
    ids = torch.tensor([PROMPTS[3]])
    with torch.no_grad():
        gap = (narrow(ids).logits - model(ids).logits).abs().max().item()
    assert gap < math.sqrt(torch.finfo(torch.float32).eps)
