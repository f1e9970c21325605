"""How a model's arithmetic runs: eight-bit weights, threads, compiling, in both engines."""

from __future__ import annotations

import inspect
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import models
import pytest
import torch

from unit.node.subjects import GREEDY, collect, write_tiny_llama
from veilrun.errors import UsageError
from veilrun.node import model_run
from veilrun.node.model_run import ModelRun
from veilrun.node.static_engine import StaticEngine, StaticSettings
from veilrun.node.transformers_engine import TransformersEngine, TransformersSettings
from veilrun.wire.generate import GenerateRequest


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("tiny"))


@asynccontextmanager
async def running(engine: Any) -> AsyncIterator[Any]:
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


def static(folder: Path, run: ModelRun) -> Any:
    return running(StaticEngine(folder, StaticSettings(run=run)))


async def test_eight_bit_weights_mostly_agree(tmp_path: Path) -> None:
    models.save_random("qwen3", tmp_path)
    exact, rounded = (
        model_run.load(tmp_path, ModelRun(device="cpu", weights=weights))
        for weights in ("stored", "int8")
    )
    ids = torch.randint(0, 96, (4, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        left, right = exact(ids).logits, rounded(ids).logits
    agreement = (left.argmax(-1) == right.argmax(-1)).float().mean()
    assert 0.8 < agreement
    assert (left - right).abs().max() > 0  # it did round
    async with static(tmp_path, ModelRun(weights="int8")) as engine:
        answer = await collect(engine, GenerateRequest((5, 6, 7), GREEDY))
        assert len(answer[0].token_ids) == GREEDY.max_tokens


def test_eight_bit_weights_need_float32_on_a_cpu(folder: Path) -> None:
    with pytest.raises(UsageError, match="8-bit"):
        StaticEngine(folder, StaticSettings(run=ModelRun(weights="int8", dtype="bfloat16")))
    with pytest.raises(UsageError, match="8-bit"):
        TransformersEngine(folder, TransformersSettings(weights="int8", dtype="bfloat16"))
    with pytest.raises(UsageError, match="8-bit"):
        ModelRun(weights="int8", compiled=True)
    with pytest.raises(UsageError, match="threads"):
        ModelRun(n_threads=0)


async def test_every_engine_has_its_own_number_of_threads(folder: Path) -> None:
    """Two engines over one model, side by side; another's setting must not reach this thread."""
    model = model_run.load(folder, ModelRun())
    seen: list[int] = []
    model.register_forward_pre_hook(lambda *_: seen.append(torch.get_num_threads()))
    for engine_of in (
        lambda n: StaticEngine(folder, StaticSettings(run=ModelRun(n_threads=n)), lambda: model),
        lambda n: TransformersEngine(folder, TransformersSettings(n_threads=n), lambda: model),
    ):
        async with running(engine_of(2)) as two, running(engine_of(1)) as one:
            for engine, n_threads in ((two, 2), (one, 1), (two, 2)):
                seen.clear()
                await collect(engine, GenerateRequest((5,), GREEDY))
                assert set(seen) == {n_threads}


async def test_compiling_without_a_compiler_is_a_usage_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compile_badly(forward: Any, **kwargs: Any) -> Any:
        def fail(*args: Any, **kwargs: Any) -> Any:
            raise RuntimeError("InvalidCxxCompiler: no compiler\nand much more")

        fail.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]
        return fail

    monkeypatch.setattr(torch, "compile", compile_badly)
    with pytest.raises(UsageError, match=r"no compiler; it needs a C\+\+ compiler"):
        async with static(folder, ModelRun(compiled=True)):
            pass
    assert not [one for one in threading.enumerate() if one.name == "static-engine"]
