"""From the first signal to the last byte: a node that ends leaves nobody without an answer."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from unit.node.subjects import FINGERPRINT
from veilrun.errors import CheckpointError, UsageError
from veilrun.node.engine import EngineLimits
from veilrun.node.server import ServerLimits
from veilrun.node.service import Listener, run_node
from veilrun.wire.generate import Choice, GenerateRequest
from veilrun.wire.manifest import Manifest

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
        self.n_active = 0

    async def start(self) -> None:
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


def serve(
    engine: PatientEngine, ready: asyncio.Future[int], *, grace_s: float = 5.0, vocab_size: int = 90
) -> asyncio.Task[None]:
    manifest = Manifest("ee", FINGERPRINT, vocab_size, "ab" * 32)
    listener = Listener("127.0.0.1", 0, None, grace_s=grace_s)
    return asyncio.create_task(
        run_node(engine, manifest, "m", listener, ServerLimits(), ready.set_result)
    )


@asynccontextmanager
async def one_request_running(
    grace_s: float = 5.0,
) -> AsyncIterator[tuple[PatientEngine, asyncio.Task[None], asyncio.Task[Any]]]:
    engine, ready = PatientEngine(), asyncio.get_running_loop().create_future()
    service = serve(engine, ready, grace_s=grace_s)
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


async def test_a_signal_lets_the_running_request_finish() -> None:
    async with one_request_running() as (engine, service, asking):
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(0.05)
        assert not service.done()
        engine.finish.set()
        assert await asking == "length"
        await service
        assert engine.stopped.is_set()


async def test_after_the_grace_the_rest_is_aborted() -> None:
    async with one_request_running(grace_s=0.05) as (_, service, asking):
        os.kill(os.getpid(), signal.SIGINT)
        assert await asking == "abort"
        await service


async def test_a_second_signal_does_not_wait() -> None:
    async with one_request_running(grace_s=60) as (_, service, asking):
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)
        assert await asking == "abort"
        await service


async def test_the_port_is_closed_while_the_last_request_runs() -> None:
    engine, ready = PatientEngine(), asyncio.get_running_loop().create_future()
    service = serve(engine, ready)
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


async def test_a_signal_while_the_model_loads_ends_it() -> None:
    engine, ready = PatientEngine(), asyncio.get_running_loop().create_future()
    engine.may_start.clear()
    service = serve(engine, ready)
    await asyncio.sleep(0.02)
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.wait_for(service, 5)
    assert engine.stopped.is_set()
    assert not ready.done()


async def test_a_manifest_of_other_weights_is_a_checkpoint_error() -> None:
    engine, ready = PatientEngine(), asyncio.get_running_loop().create_future()
    with pytest.raises(CheckpointError, match="names 101 ids, the weights have 100"):
        await serve(engine, ready, vocab_size=101)
    assert engine.stopped.is_set()


async def test_a_port_in_use_is_a_usage_error_and_stops_the_engine() -> None:
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    engine = PatientEngine()
    manifest = Manifest("ee", FINGERPRINT, 90, "ab" * 32)
    async with server:
        with pytest.raises(UsageError, match="in use"):
            await run_node(
                engine, manifest, "m", Listener("127.0.0.1", port, None), ServerLimits(), print
            )
    assert engine.stopped.is_set()
