"""The vLLM engine over a fake `vllm` command: starting, failing, ending. No vLLM needed."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio

import fake_vllm
from fake_vllm import DEFECTS
from veilrun.errors import BusyError, CheckpointError, TransportError, UsageError
from veilrun.node.vllm_engine import VllmEngine, VllmOptions
from veilrun.wire.generate import Choice, GenerateRequest, SamplingParams

SECRETS = {
    "VEILRUN_PASSPHRASE": "canary-1",
    "VEILRUN_API_KEY": "canary-2",
    "HF_TOKEN": "canary-3",
    "AWS_SECRET_ACCESS_KEY": "canary-4",
    "VLLM_API_KEY": "canary-5",
}
OPTIONS = VllmOptions(max_model_len=48, start_timeout_s=30, stop_grace_s=20)


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make the fake the `vllm` that is found; the file tells what it was started with."""
    executable = fake_vllm.install(tmp_path / "bin")
    monkeypatch.setattr("veilrun.node.vllm_process.vllm_executable", lambda: executable)
    path = tmp_path / "record"
    monkeypatch.setenv("FAKE_VLLM_RECORD", str(path))
    monkeypatch.setenv("FAKE_VLLM", "good")
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"vocab_size": 512, "max_position_embeddings": 64}')
    return folder


@pytest_asyncio.fixture
async def engine(record: Path, model: Path) -> AsyncIterator[VllmEngine]:
    engine = VllmEngine(model, OPTIONS)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


async def ask(engine: VllmEngine, *ids: int, **params: Any) -> list[Choice]:
    request = GenerateRequest(ids, SamplingParams(**params))
    async with asyncio.timeout(20), aclosing(engine.generate(request)) as choices:
        return [one async for one in choices]


async def gone(*pids: int) -> bool:
    """Whether none of the processes is left after at most five seconds."""
    limit_s = time.monotonic() + 5
    while any(map(psutil.pid_exists, pids)) and time.monotonic() < limit_s:
        await asyncio.sleep(0.05)
    return not any(map(psutil.pid_exists, pids))


# --- starting ----------------------------------------------------------------------------


async def test_how_vllm_is_started(engine: VllmEngine, record: Path, model: Path) -> None:
    started = json.loads(record.read_text())
    line, environment = started["arguments"], started["environment"]
    assert line[1:4] == ["serve", str(model), "--tokens-only"]
    assert line[line.index("--host") + 1] == "127.0.0.1"
    assert Path(line[line.index("--uds") + 1]).parent.stat().st_mode & 0o777 == 0o700
    assert "--port" not in line
    assert len(environment["VLLM_API_KEY"]) >= 32
    assert environment["VLLM_API_KEY"] not in " ".join(line)
    assert "canary" not in json.dumps(started)
    for name in ("HF_HUB_OFFLINE", "VLLM_NO_USAGE_STATS", "DO_NOT_TRACK"):
        assert environment[name] == "1"
    assert environment["TMPDIR"] == environment["VLLM_RPC_BASE_PATH"] == str(Path(line[5]).parent)


async def test_every_start_has_its_own_key_and_folder(engine: VllmEngine, record: Path) -> None:
    first = json.loads(record.read_text())
    await engine.start()
    second = json.loads(record.read_text())
    for name in ("VLLM_API_KEY", "TMPDIR"):
        assert first["environment"][name] != second["environment"][name]
    assert await gone(first["pid"])
    assert not Path(first["environment"]["TMPDIR"]).exists()


async def test_vllms_own_context_length_counts(engine: VllmEngine, model: Path) -> None:
    assert VllmEngine(model).limits.max_model_len == 64
    assert engine.limits.max_model_len == 48
    assert engine.ready


async def test_a_failed_start_shows_the_cause_and_the_last_lines(
    record: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_VLLM", "broken")
    engine = VllmEngine(model, OPTIONS)
    with pytest.raises(UsageError) as failure:
        await engine.start()
    first, *rest = str(failure.value).splitlines()
    assert first == "vLLM did not start: ValueError: no memory left for the cache"
    assert rest[-1].endswith("Engine core initialization failed")
    assert len(rest) < 30
    assert not engine.ready
    assert not Path(json.loads(record.read_text())["environment"]["TMPDIR"]).exists()
    await engine.stop()


async def test_a_start_that_takes_too_long_is_given_up(
    record: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_VLLM", "never healthy")
    engine = VllmEngine(model, VllmOptions(start_timeout_s=3, stop_grace_s=2))
    with pytest.raises(UsageError, match="not ready after 3 s"):
        await engine.start()
    assert await gone(json.loads(record.read_text())["pid"])


async def test_a_cancelled_start_leaves_nothing(
    record: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_VLLM", "never healthy")
    engine = VllmEngine(model, OPTIONS)
    start = asyncio.create_task(engine.start())
    while not record.exists() or not record.read_text():
        await asyncio.sleep(0.05)
    start.cancel()
    await asyncio.gather(start, return_exceptions=True)
    assert await gone(json.loads(record.read_text())["pid"])


async def test_without_vllm_the_error_says_what_to_install(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("veilrun.node.vllm_process.vllm_executable", lambda: None)
    with pytest.raises(UsageError, match="pip install vllm"):
        await VllmEngine(model).start()


@pytest.mark.parametrize("config", [None, "{", "[]", "{}", '{"vocab_size": "many"}'])
def test_a_folder_without_a_model_is_refused(tmp_path: Path, config: str | None) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(CheckpointError):
        VllmEngine(tmp_path)


# --- answering ---------------------------------------------------------------------------


async def test_an_answer_comes_piece_by_piece(engine: VllmEngine, record: Path) -> None:
    got = await ask(engine, 100, 3, max_tokens=3, logprobs=2)
    assert [one.token_ids for one in got] == [(100,), (101,), (102,)]
    assert [one.finish_reason for one in got] == [None, None, "length"]
    assert [one.rank for one in got[0].logprobs[0].top] == [1, 2]
    sent = json.loads(Path(f"{record}.requests").read_text().splitlines()[-1])
    assert sent["stream"] is True
    assert sent["sampling_params"]["logprobs"] == 3
    assert len(sent["cache_salt"]) >= 32
    assert "request_id" not in sent and "model" not in sent


async def test_a_line_of_megabytes_is_read(engine: VllmEngine) -> None:
    (got,) = await ask(engine, DEFECTS["long line"])
    assert len(got.token_ids) == 300_000


@pytest.mark.parametrize(
    ("defect", "error"),
    [
        ("garbage", TransportError),
        ("wrong shape", TransportError),
        ("no such path", TransportError),
        ("breaks", BusyError),
        ("refuses", UsageError),
        ("refuses in the stream", UsageError),
    ],
)
async def test_failures_before_the_first_token(
    engine: VllmEngine, defect: str, error: type[Exception]
) -> None:
    with pytest.raises(error) as caught:
        await ask(engine, DEFECTS[defect])
    assert type(caught.value) is error
    assert engine.ready
    assert len(await ask(engine, 100, max_tokens=2)) == 2


@pytest.mark.parametrize("defect", ["garbage later", "ends early", "fails in the stream"])
async def test_failures_after_the_first_token_abort_the_answer(
    engine: VllmEngine, defect: str, caplog: pytest.LogCaptureFixture
) -> None:
    got = await ask(engine, DEFECTS[defect], n=2, temperature=1.0)
    assert [(one.index, one.finish_reason) for one in got] == [
        (0, None),
        (0, "abort"),
        (1, "abort"),
    ]
    assert "broke off" in caplog.text
    assert "words" not in caplog.text  # what vLLM said may repeat the request


async def test_an_id_outside_the_vocabulary_never_leaves(engine: VllmEngine, record: Path) -> None:
    with pytest.raises(UsageError, match="outside the vocabulary"):
        await ask(engine, 1, 512)
    assert "512" not in Path(f"{record}.requests").read_text()


async def test_closing_the_generator_closes_the_connection(
    engine: VllmEngine, record: Path
) -> None:
    choices = engine.generate(GenerateRequest((DEFECTS["never ends"],)))
    await anext(choices)
    await choices.aclose()
    notice = Path(f"{record}.gone")
    async with asyncio.timeout(10):
        while not notice.exists():
            await asyncio.sleep(0.05)


# --- ending ------------------------------------------------------------------------------


async def test_death_in_mid_answer_aborts_it_and_vllm_comes_back(
    engine: VllmEngine, record: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    first = json.loads(record.read_text())["pid"]
    got = await ask(engine, DEFECTS["dies"], logprobs=1)
    assert [one.finish_reason for one in got] == [None, "abort"]
    assert got[-1].logprobs == ()
    async with asyncio.timeout(20):
        while json.loads(record.read_text() or '{"pid": 0}')["pid"] in (0, first):
            await asyncio.sleep(0.05)
        while not engine.ready:
            await asyncio.sleep(0.05)
    assert "code 9: no reason" in caplog.text  # not the error it wrote while starting
    assert len(await ask(engine, 100, max_tokens=2)) == 2


async def test_after_three_failed_restarts_the_engine_stays_down(
    engine: VllmEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("FAKE_VLLM", "broken")
    await ask(engine, DEFECTS["dies"])
    async with asyncio.timeout(60):
        while "stays down" not in caplog.text:
            await asyncio.sleep(0.05)
    assert not engine.ready
    with pytest.raises(BusyError):
        await ask(engine, 100)


async def test_stop_aborts_what_runs_and_leaves_nothing(engine: VllmEngine, record: Path) -> None:
    started = json.loads(record.read_text())
    choices = engine.generate(GenerateRequest((DEFECTS["never ends"],)))
    await anext(choices)
    begun_s = time.monotonic()
    await engine.stop()
    assert time.monotonic() - begun_s < 10  # like vLLM, the fake waits for open streams
    rest = [one async for one in choices]
    assert rest[-1].finish_reason == "abort"
    assert not engine.ready
    assert await gone(started["pid"])
    assert not Path(started["environment"]["TMPDIR"]).exists()
    with pytest.raises(BusyError):
        await ask(engine, 100)
    await engine.stop()


async def test_a_vllm_that_will_not_end_is_killed_with_its_workers(
    record: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_VLLM", "stubborn")
    engine = VllmEngine(model, VllmOptions(start_timeout_s=30, stop_grace_s=0.5))
    await engine.start()
    started = json.loads(record.read_text())
    assert psutil.pid_exists(started["worker"])
    await engine.stop()
    assert await gone(started["pid"], started["worker"])
