"""An engine whose every token the test releases, behind the real HTTP surface on real TCP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from unit.node.subjects import FINGERPRINT
from veilrun.node.engine import EngineLimits
from veilrun.node.server import NodeServer, ServerLimits
from veilrun.node.service import Listener, listening
from veilrun.wire.generate import Choice, GenerateRequest, PositionLogprobs, TokenLogprob
from veilrun.wire.manifest import Manifest

GENERATE = "/inference/v1/generate"
ABORT = "/inference/v1/abort_requests"
MANIFEST = Manifest("ee", FINGERPRINT, 90, "ab" * 32)


class StepEngine:
    """Answers 10, 11, 12...; each token waits for a step that the test gives."""

    name = "steps"
    limits = EngineLimits(vocab_size=100, max_model_len=64, max_n=4)

    def __init__(self) -> None:
        self.ready = True
        self.n_active = 0
        self.error: Exception | None = None
        self._steps = asyncio.Semaphore(0)
        self._free = False

    def step(self, n: int = 1) -> None:
        for _ in range(n):
            self._steps.release()

    def run_freely(self) -> None:
        self._free = True
        self.step(100)

    async def start(self) -> None: ...
    async def stop(self) -> None: ...

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Choice]:
        params = request.sampling_params
        self.n_active += 1
        try:
            for place in range(params.max_tokens):
                if not self._free:
                    await self._steps.acquire()
                if self.error is not None:
                    raise self.error
                last = place == params.max_tokens - 1
                for index in range(params.n):
                    token = 10 + place
                    logprobs = None
                    if params.logprobs is not None:
                        logprobs = (PositionLogprobs(TokenLogprob(token, -0.5, 1)),)
                    yield Choice(index, (token,), "length" if last else None, logprobs=logprobs)
        finally:
            self.n_active -= 1


class Node:
    """A listening server and a client session."""

    def __init__(self, engine: StepEngine, server: NodeServer, session: Any) -> None:
        self.engine, self.server, self.session = engine, server, session

    async def generate(self, **body: Any) -> tuple[int, dict[str, Any], Any]:
        async with self.session.post(GENERATE, json=request(**body)) as answer:
            return answer.status, await answer.json(), answer.headers

    async def metric(self, name: str) -> float:
        async with self.session.get("/metrics") as answer:
            for line in (await answer.text()).splitlines():
                if line.startswith(f"veilrun_node_{name} "):
                    return float(line.split()[-1])
        raise KeyError(name)


def request(**changes: Any) -> dict[str, Any]:
    sampling = changes.pop("sampling_params", {"max_tokens": 3})
    return {"token_ids": [1, 2, 3], "sampling_params": sampling, **changes}


@asynccontextmanager
async def running(
    limits: ServerLimits | None = None, api_key: str | None = None
) -> AsyncIterator[Node]:
    engine = StepEngine()
    server = NodeServer(engine, MANIFEST, "m", limits, api_key)
    async with listening(server, Listener("127.0.0.1", 0, None)) as (_, port):
        base = f"http://127.0.0.1:{port}"
        async with aiohttp.ClientSession(base, timeout=aiohttp.ClientTimeout(10)) as session:
            yield Node(engine, server, session)


async def until(condition: Any, timeout_s: float = 5.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)


async def events(answer: aiohttp.ClientResponse) -> list[str]:
    return [e.removeprefix("data: ") for e in (await answer.text()).split("\n\n") if e]
