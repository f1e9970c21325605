"""A node as its operator runs it: a process, TLS, a real engine, real clients.

Expected tokens come from plain transformers over the same folder.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from unit.node.subjects import (
    FINGERPRINT,
    VOCAB_SIZE,
    plain_greedy,
    plain_model,
    write_manifest,
    write_tiny_llama,
)
from veilrun.node.server import NodeServer, ServerLimits
from veilrun.node.service import Listener, listening
from veilrun.node.transformers_engine import TransformersEngine, TransformersSettings
from veilrun.transport import tls
from veilrun.wire.manifest import decode_card, decode_manifest

GENERATE = "/inference/v1/generate"
PROMPT = (1, 5, 9)

COMMAND = (sys.executable, "-m", "veilrun.cli", "node")


def greedy(prompt: tuple[int, ...] = PROMPT, n_tokens: int = 12, **more: Any) -> dict[str, Any]:
    sampling = {"temperature": 0.0, "max_tokens": n_tokens, "ignore_eos": True}
    return {"token_ids": prompt, "sampling_params": sampling, **more}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("tiny") / "out", max_len=512)


@pytest.fixture(scope="module")
def expected(folder: Path) -> list[int]:
    return plain_greedy(plain_model(folder), PROMPT, 12)


# --- the process --------------------------------------------------------------------------


@dataclass
class Process:
    """A started node process and the JSON line it printed."""

    process: subprocess.Popen[str]
    ready: dict[str, str]

    def session(self) -> aiohttp.ClientSession:
        pin = aiohttp.Fingerprint(tls.parse_pin(self.ready["pin"]))
        return aiohttp.ClientSession(self.ready["url"], connector=aiohttp.TCPConnector(ssl=pin))

    def end(self, timeout_s: float = 20) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_s)


def spawn(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.fixture(scope="module")
def process(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    identity = tmp_path_factory.mktemp("identity")
    child = spawn(folder, "--port", 0, "--identity", identity, "--json", "--grace", 10)
    try:
        line = child.stdout.readline() if child.stdout else ""
        assert line, child.stderr and child.stderr.read()
        yield Process(child, json.loads(line))
    finally:
        child.kill()
        child.communicate()


def test_ready_line_names_what_a_proxy_needs(process: Process) -> None:
    assert process.ready["url"].startswith("https://127.0.0.1:")
    assert len(tls.parse_pin(process.ready["pin"])) == 32
    assert (process.ready["model"], process.ready["fingerprint"]) == ("out", FINGERPRINT)


async def test_pinned_client_gets_what_plain_transformers_generates(
    process: Process, folder: Path, expected: list[int]
) -> None:
    async with process.session() as session:
        async with session.get("/v1/models") as answer:
            card = decode_card(await answer.read())
        assert (card.engine, card.max_model_len) == ("transformers", 512)
        assert card.manifest == decode_manifest((folder / "veilrun.json").read_bytes())
        async with session.post(GENERATE, json=greedy(model="out")) as answer:
            body = await answer.json()
    assert body["choices"][0]["token_ids"] == expected


async def test_client_without_the_pin_does_not_connect(process: Process) -> None:
    wrong = aiohttp.Fingerprint(bytes(32))
    async with aiohttp.ClientSession(process.ready["url"]) as session:
        with pytest.raises(aiohttp.ServerFingerprintMismatch):
            await session.post(GENERATE, json=greedy(), ssl=wrong)
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await session.post(GENERATE, json=greedy())


async def test_plain_http_is_not_spoken_on_the_tls_port(process: Process) -> None:
    url = process.ready["url"].replace("https", "http")
    async with aiohttp.ClientSession(url) as session:
        with pytest.raises((aiohttp.ClientError, ssl.SSLError)):
            await session.post(GENERATE, json=greedy())


async def test_sigterm_lets_a_running_answer_finish_and_exits_with_0(process: Process) -> None:
    """The last test of the shared process: it ends it."""
    async with process.session() as session:
        body = greedy(n_tokens=400, stream=True)
        async with session.post(GENERATE, json=body) as answer:
            await answer.content.readuntil(b"\n\n")
            process.process.send_signal(signal.SIGTERM)
            rest = (await answer.text()).split("\n\n")
            assert rest[-2] == "data: [DONE]"
            assert json.loads(rest[-3][6:])["choices"][0]["finish_reason"] == "length"
    assert await asyncio.to_thread(process.process.wait, 20) == 0
    _, log = process.process.communicate()
    assert "request answered" in log
    assert "[1, 5, 9]" not in log


def refused(*arguments: object) -> tuple[int, str]:
    child = spawn(*arguments)
    _, log = child.communicate(timeout=60)
    return child.returncode, log


def test_a_folder_with_a_tokenizer_is_refused(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "out"
    shutil.copytree(folder, copy)
    (copy / "tokenizer.json").write_text("{}")
    code, log = refused(copy, "--port", 0, "--identity", tmp_path / "identity")
    assert code == 3
    assert "tokenizer.json" in log


# --- the engine behind the real surface ---------------------------------------------------


@dataclass
class Running:
    """An engine and a server in this process, and a client of them."""

    engine: TransformersEngine
    server: NodeServer
    session: aiohttp.ClientSession

    async def generate(self, body: dict[str, Any]) -> tuple[int, Any]:
        async with self.session.post(GENERATE, json=body) as answer:
            streamed = answer.content_type == "text/event-stream"
            return answer.status, await (answer.text() if streamed else answer.json())

    @property
    def n_steps(self) -> int:
        """Forward passes since the engine started."""
        assert self.engine._batch is not None
        return int(self.engine._batch._manager.current_batch)

    async def idle(self, timeout_s: float = 5.0) -> None:
        async with asyncio.timeout(timeout_s):
            while self.engine.n_active:
                await asyncio.sleep(0.01)


@asynccontextmanager
async def running(folder: Path, limits: ServerLimits | None = None) -> AsyncIterator[Running]:
    engine = TransformersEngine(folder, TransformersSettings(max_running=8))
    await engine.start()
    try:
        manifest = decode_manifest((folder / "veilrun.json").read_bytes())
        server = NodeServer(engine, manifest, "out", limits)
        async with listening(server, Listener("127.0.0.1", 0, None)) as (_, port):
            base, limit = f"http://127.0.0.1:{port}", aiohttp.ClientTimeout(30)
            async with aiohttp.ClientSession(base, timeout=limit) as session:
                yield Running(engine, server, session)
    finally:
        await engine.stop()


one_loop = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def node(folder: Path) -> AsyncIterator[Running]:
    async with running(folder) as node:
        yield node


@one_loop
async def test_id_outside_the_vocabulary_is_400_and_a_neighbour_sees_nothing(
    node: Running, expected: list[int]
) -> None:
    neighbour = asyncio.create_task(node.generate(greedy()))
    await asyncio.sleep(0.005)
    status, body = await node.generate(greedy((1, VOCAB_SIZE)))
    assert (status, body["error"]["type"]) == (400, "invalid_request_error")
    status, body = await neighbour
    assert status == 200
    assert body["choices"][0]["token_ids"] == expected
    assert node.engine.ready


@one_loop
@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_stops_the_engine(node: Running, stream: bool) -> None:
    body, n_before = greedy(n_tokens=500, stream=stream), node.n_steps
    task = asyncio.create_task(node.generate(body))
    async with asyncio.timeout(5):
        while node.engine.n_active == 0:
            await asyncio.sleep(0.005)
    task.cancel()
    await node.idle()
    assert node.n_steps - n_before < 400  # the whole answer takes 500


@one_loop
async def test_abort_stops_the_engine_and_keeps_what_was_streamed(
    node: Running, expected: list[int]
) -> None:
    body, n_before = greedy(n_tokens=500, stream=True, request_id="r"), node.n_steps
    async with node.session.post(GENERATE, json=body) as answer:
        await answer.content.readuntil(b"\n\n")
        ids = {"request_ids": ["generate-tokens-r"]}
        async with node.session.post("/inference/v1/abort_requests", json=ids) as abort:
            assert abort.status == 200
        *_, last, done, _ = (await answer.text()).split("\n\n")
    assert done == "data: [DONE]"
    assert json.loads(last[6:])["choices"][0]["finish_reason"] == "abort"
    await node.idle()
    assert node.n_steps - n_before < 400


@one_loop
async def test_random_endings_leave_nothing_behind(node: Running, expected: list[int]) -> None:
    """Clients that stay, leave or are aborted at any moment; sampled, greedy, streamed or not."""
    chance = random.Random(5)

    async def live(number: int) -> None:
        body = greedy(n_tokens=chance.randint(1, 60), stream=chance.random() < 0.5)
        body["sampling_params"] |= {"n": chance.randint(1, 3), "temperature": number % 2}
        body["request_id"] = str(number)
        asking = asyncio.create_task(node.generate(body))
        await asyncio.sleep(chance.random() / 5)
        if number % 3 == 0:
            asking.cancel()
        if number % 3 == 1:
            ids = {"request_ids": [f"generate-tokens-{number}"]}
            await (await node.session.post("/inference/v1/abort_requests", json=ids)).read()
        await asyncio.gather(asking, return_exceptions=True)

    await asyncio.gather(*(live(number) for number in range(30)))
    await node.idle()
    async with asyncio.timeout(5):
        while node.server._exchanges:
            await asyncio.sleep(0.01)
    assert node.server._running.n_on_loan == node.engine._room.n_on_loan == 0
    assert not node.engine._runs
    assert node.engine._batch is not None
    assert not node.engine._batch._sampler.answers
    assert not node.engine._batch._manager.output_router.result_handlers
    _, body = await node.generate(greedy())
    assert body["choices"][0]["token_ids"] == expected


async def test_queue_full_is_429_while_the_running_answer_goes_on(
    folder: Path, expected: list[int]
) -> None:
    async with running(folder, ServerLimits(max_running=1, max_queued=0)) as node:
        async with node.session.post(GENERATE, json=greedy(n_tokens=300, stream=True)) as first:
            await first.content.readuntil(b"\n\n")
            status, body = await node.generate(greedy())
            assert (status, body["error"]["code"]) == (429, "queue_full")
            assert "[DONE]" in await first.text()
        status, body = await node.generate(greedy())
        assert body["choices"][0]["token_ids"] == expected


@one_loop
async def test_streams_and_whole_answers_side_by_side(node: Running, expected: list[int]) -> None:
    async def streamed() -> list[int]:
        async with node.session.post(GENERATE, json=greedy(stream=True)) as answer:
            events = [e[6:] for e in (await answer.text()).split("\n\n") if e]
        chunks = [json.loads(one) for one in events[:-1]]
        return [token for chunk in chunks for token in chunk["choices"][0]["token_ids"]]

    async def whole() -> list[int]:
        return (await node.generate(greedy()))[1]["choices"][0]["token_ids"]

    answers = await asyncio.gather(*(one() for one in (streamed, whole) * 3))
    assert answers == [expected] * 6


async def test_pretrained_model_answers_as_plain_transformers(
    stories: Path, tmp_path: Path
) -> None:
    """stories260K without its tokenizer, as the compiler would leave it."""
    out = tmp_path / "out"
    out.mkdir()
    for name in ("config.json", "generation_config.json", "model.safetensors"):
        shutil.copy(stories / name, out / name)
    write_manifest(out, 512)
    prompts = [(1, 403, 407), (1, 310, 300, 420, 431, 299)]
    plain = plain_model(out)
    async with running(out) as node:
        for prompt in prompts:
            _, body = await node.generate(greedy(prompt, 40))
            assert body["choices"][0]["token_ids"] == plain_greedy(plain, prompt, 40)
