"""From the first signal to the last byte: a node that ends leaves nobody without an answer."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from unit.node.steps import MANIFEST, StepEngine
from unit.node.subjects import manifest_of, write_weights
from veilrun.errors import CheckpointError, UsageError
from veilrun.node import service
from veilrun.node.engine import EngineLimits
from veilrun.node.server import NodeServer, ServerLimits
from veilrun.node.service import Listener, listening, run_node
from veilrun.wire.generate import Choice, GenerateRequest

GENERATE = "/inference/v1/generate"
LIMIT = aiohttp.ClientTimeout(10)
BODY = {"token_ids": [1], "sampling_params": {"max_tokens": 3}}


class PatientEngine:
    """Answers when `finish` is set; `stop` ends what is open with "abort"."""

    name = "patient"
    limits = EngineLimits(vocab_size=100, max_model_len=64)

    def __init__(self) -> None:
        self.ready = False
        self.finish = asyncio.Event()
        self.stopped = asyncio.Event()
        self.may_start = asyncio.Event()
        self.may_start.set()
        self.starting = asyncio.Event()
        self.n_active = 0

    async def start(self) -> None:
        self.starting.set()
        await self.may_start.wait()
        self.ready = True

    async def stop(self) -> None:
        self.ready = False
        self.stopped.set()

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Choice]:
        self.n_active += 1
        waits = [asyncio.create_task(one.wait()) for one in (self.finish, self.stopped)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            yield Choice(0, (7,), "length" if self.finish.is_set() else "abort")
        finally:
            self.n_active -= 1
            for one in waits:
                one.cancel()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weights(tmp_path_factory.mktemp("out"))


def serve(
    folder: Path,
    engine: PatientEngine,
    ready: asyncio.Future[int],
    *,
    grace_s: float = 5.0,
    port: int = 0,
    **changes: Any,
) -> asyncio.Task[None]:
    manifest = replace(manifest_of(folder, 90), **changes)
    listener = Listener("127.0.0.1", port, None, grace_s=grace_s)
    return asyncio.create_task(
        run_node(engine, folder, manifest, "m", listener, ServerLimits(), ready.set_result)
    )


@asynccontextmanager
async def one_request_running(
    folder: Path, grace_s: float = 5.0
) -> AsyncIterator[tuple[PatientEngine, asyncio.Task[None], asyncio.Task[Any]]]:
    engine, ready = PatientEngine(), asyncio.get_running_loop().create_future()
    service = serve(folder, engine, ready, grace_s=grace_s)
    base = f"http://127.0.0.1:{await ready}"

    async def ask() -> Any:
        async with aiohttp.ClientSession(base, timeout=LIMIT) as session:
            async with session.post(GENERATE, json=BODY) as answer:
                return (await answer.json())["choices"][0]["finish_reason"]

    asking = asyncio.create_task(ask())
    async with asyncio.timeout(5):
        while not engine.n_active:
            await asyncio.sleep(0.005)
        yield engine, service, asking


async def test_a_signal_lets_the_running_request_finish(folder: Path) -> None:
    async with one_request_running(folder) as (engine, service, asking):
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(0.05)
        assert not service.done()
        engine.finish.set()
        assert await asking == "length"
        await service
        assert engine.stopped.is_set()


async def test_after_the_grace_the_rest_is_aborted(folder: Path) -> None:
    async with one_request_running(folder, grace_s=0.05) as (_, service, asking):
        os.kill(os.getpid(), signal.SIGINT)
        assert await asking == "abort"
        await service


async def test_a_second_signal_does_not_wait(folder: Path) -> None:
    async with one_request_running(folder, grace_s=60) as (_, service, asking):
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)
        assert await asking == "abort"
        await service


async def test_the_port_is_closed_while_the_last_request_runs(folder: Path) -> None:
    engine, ready = PatientEngine(), asyncio.get_running_loop().create_future()
    service = serve(folder, engine, ready)
    base = f"http://127.0.0.1:{await ready}"
    async with aiohttp.ClientSession(base, timeout=LIMIT) as session, asyncio.timeout(5):
        asking = asyncio.create_task(session.post(GENERATE, json=BODY))
        while not engine.n_active:
            await asyncio.sleep(0.005)
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(0.05)
        async with aiohttp.ClientSession(base) as stranger:
            with pytest.raises(aiohttp.ClientConnectorError):
                await stranger.get("/health")
        engine.finish.set()
        assert (await asking).status == 200
    await service


async def test_a_signal_while_the_model_loads_ends_it(folder: Path) -> None:
    engine, ready = PatientEngine(), asyncio.get_running_loop().create_future()
    engine.may_start.clear()
    service = serve(folder, engine, ready)
    await asyncio.wait_for(engine.starting.wait(), 5)
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.wait_for(service, 5)
    assert engine.stopped.is_set()
    assert not ready.done()


async def test_a_signal_while_the_weights_are_verified_ends_that_too(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, ended = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def verify(_folder: Path, _manifest: Any, is_abandoned: Any) -> None:
        loop.call_soon_threadsafe(begun.set)
        limit_s = time.monotonic() + 5
        while time.monotonic() < limit_s:
            if is_abandoned():
                loop.call_soon_threadsafe(ended.set)
                return
            time.sleep(0.005)

    monkeypatch.setattr(service, "verify_weights", verify)
    engine, ready = PatientEngine(), loop.create_future()
    running = serve(folder, engine, ready)
    await asyncio.wait_for(begun.wait(), 5)
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.wait_for(running, 2)
    await asyncio.wait_for(ended.wait(), 2)
    assert not engine.starting.is_set()
    assert not ready.done()


async def test_a_manifest_of_other_weights_is_an_error_before_they_are_loaded(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "veilrun")
    engine, ready = PatientEngine(), asyncio.get_running_loop().create_future()
    with pytest.raises(CheckpointError, match="damaged copy"):
        await serve(folder, engine, ready, weights_root="ab" * 32)
    assert not engine.starting.is_set()
    assert engine.stopped.is_set()
    assert [one.getMessage() for one in caplog.records] == ["verifying the weights"]


async def test_a_manifest_with_too_many_ids_is_a_checkpoint_error(folder: Path) -> None:
    engine, ready = PatientEngine(), asyncio.get_running_loop().create_future()
    with pytest.raises(CheckpointError, match="names 101 ids, the weights have 100"):
        await serve(folder, engine, ready, vocab_size=101)
    assert engine.stopped.is_set()


async def test_a_port_in_use_is_a_usage_error_and_stops_the_engine(folder: Path) -> None:
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    engine, ready = PatientEngine(), asyncio.get_running_loop().create_future()
    async with server:
        with pytest.raises(UsageError, match="in use"):
            await serve(folder, engine, ready, port=port)
    assert engine.stopped.is_set()


@pytest.mark.parametrize(
    "sent", ["", "GET /health HTTP/1.1\r\nX: ", "GET /health HTTP/1.1\r\n\r\n"]
)
async def test_a_connection_without_a_request_is_closed(
    sent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Silent, in mid-header, and idle after an answer."""
    assert service._IDLE_S == 75
    monkeypatch.setattr(service, "_IDLE_S", 0.1)
    server = NodeServer(StepEngine(), MANIFEST, "m")
    async with listening(server, Listener("127.0.0.1", 0, None)) as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent.encode())
        async with asyncio.timeout(3):
            await reader.read()
        writer.close()
