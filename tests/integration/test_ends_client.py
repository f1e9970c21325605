"""The middle at a node, the ends at the client: the same text as the plain model's.

The engine and both surfaces are real; the whole chain runs once more as processes.
"""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import openai
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from veilrun.cli.node import node as node_command
from veilrun.demo import child
from veilrun.equivariant.client import ClientKit, find_client_kit, kits_folder
from veilrun.equivariant.compile import encrypt
from veilrun.errors import BusyError, PeerError, TransportError, UsageError, VerificationError
from veilrun.keys import MasterKey, save_key
from veilrun.node.front import ServerLimits
from veilrun.node.middle_engine import MiddleEngine
from veilrun.node.middle_server import MiddleServer, SessionLost
from veilrun.node.service import Listener, listening
from veilrun.node.transformers_engine import TransformersSettings
from veilrun.serve.ask import Ask, Sampling
from veilrun.serve.ends import Ends, load_ends
from veilrun.serve.middle_client import MiddleClient
from veilrun.serve.node_address import insecure_plain_http_node_for_loopback_only
from veilrun.serve.node_answers import NodeRefusal
from veilrun.wire.manifest import MANIFEST_FILE, decode_manifest
from veilrun.wire.middle import MIDDLE_PATH, Extend, decode_states, encode_request

KEY = MasterKey(bytes(range(100, 132)))
PASSPHRASE = "a passphrase that no node may see"
OPENINGS = ["Once upon a time", "One day", "Lily and Ben", "The little dog"]
GREEDY = Sampling(temperature=0.0)
SESSION = "ab" * 16


@dataclass(frozen=True, eq=False)
class Subject:
    plain: Path
    encrypted: Path
    key_file: Path
    kit: ClientKit
    ends: Ends


@pytest.fixture(scope="module")
def subject(stories: Path, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    work = tmp_path_factory.mktemp("ends")
    key_file = work / "my.key"
    save_key(KEY, key_file, PASSPHRASE, scrypt_log2_n=12)
    (work / "passphrase").touch(mode=0o600)
    (work / "passphrase").write_text(PASSPHRASE)
    made = encrypt(stories, work / "out", KEY, kits=kits_folder(key_file), ends="client")
    kit = find_client_kit(key_file, KEY, made.fingerprint)
    assert kit.ends_file is not None
    return Subject(stories, made.folder, key_file, kit, load_ends(kit.ends_file, kit.codec))


@dataclass(frozen=True)
class Running:
    url: str
    engine: MiddleEngine
    server: MiddleServer
    client: MiddleClient


@asynccontextmanager
async def running(
    subject: Subject,
    *,
    limits: ServerLimits | None = None,
    idle_s: float = 60.0,
    fingerprint: str | None = None,
    **settings: Any,
) -> AsyncIterator[Running]:
    engine = MiddleEngine(subject.encrypted, TransformersSettings(**settings), idle_s)
    await engine.start()
    manifest = decode_manifest((subject.encrypted / MANIFEST_FILE).read_bytes())
    server = MiddleServer(engine, manifest, "m", limits)
    try:
        async with listening(server, Listener("127.0.0.1", 0, None)) as (_, port):
            url = f"http://127.0.0.1:{port}"
            address = insecure_plain_http_node_for_loopback_only(url)
            kit = subject.kit
            async with MiddleClient(address, kit.codec, kit.eos_token_ids, subject.ends) as client:
                yield Running(url, engine, server, client)
    finally:
        await engine.stop()


@functools.cache
def plain_ids(subject: Subject, prompt: str, n_tokens: int) -> tuple[tuple[int, ...], list[int]]:
    """A prompt's ids, and what plain transformers says to it, greedily."""
    tokenizer = AutoTokenizer.from_pretrained(subject.plain)
    model = AutoModelForCausalLM.from_pretrained(subject.plain, dtype=torch.float32)
    inputs = tokenizer(prompt, return_tensors="pt")
    made = model.generate(**inputs, max_new_tokens=n_tokens, do_sample=False)[0].tolist()
    n_prompt = inputs["input_ids"].shape[1]
    return tuple(made[:n_prompt]), made[n_prompt:]


def text_of(subject: Subject, ids: list[int]) -> str:
    tokenizer = AutoTokenizer.from_pretrained(subject.plain)
    text: str = tokenizer.decode(ids, skip_special_tokens=True)
    return text


async def answer(client: MiddleClient, ask: Ask) -> list[int]:
    return [one for delta in await client.complete(ask) for one in delta.ids]


async def test_greedy_answers_are_the_plain_models(subject: Subject):
    async with running(subject) as up:
        for prompt in OPENINGS:
            prompt_ids, expected = plain_ids(subject, prompt, 24)
            assert await answer(up.client, Ask(prompt_ids, 24, GREEDY)) == expected
    assert up.engine.n_sessions == 0, "answers that have ended leave nothing behind"


async def test_answers_at_once_do_not_mix(subject: Subject):
    cases = [plain_ids(subject, prompt, 24) for prompt in OPENINGS]
    async with running(subject) as up:
        asks = [Ask(prompt_ids, 24, GREEDY) for prompt_ids, _ in cases]
        assert await asyncio.gather(*(answer(up.client, ask) for ask in asks)) == [
            expected for _, expected in cases
        ]


async def test_several_answers_with_seeds_and_reports(subject: Subject):
    prompt_ids, _ = plain_ids(subject, "One day", 1)
    ask = Ask(prompt_ids, 12, Sampling(n=3, temperature=1.0, top_p=0.9, seed=7, logprobs=2))
    async with running(subject) as up:
        first, second = [await up.client.complete(ask) for _ in range(2)]
    by_index = {
        index: [one for delta in first if delta.index == index for one in delta.ids]
        for index in range(3)
    }
    assert all(by_index.values()) and len(set(map(tuple, by_index.values()))) > 1
    for index, ids in by_index.items():
        assert ids == [one for delta in second if delta.index == index for one in delta.ids]
    for delta in first:
        assert delta.positions is not None and len(delta.positions[0].top) == 2
        assert delta.positions[0].top[0].logprob >= delta.positions[0].top[1].logprob
        assert delta.positions[0].chosen.token_id == delta.ids[0]
    model = AutoModelForCausalLM.from_pretrained(subject.plain, dtype=torch.float32)
    with torch.no_grad():
        logprobs = model(torch.tensor([prompt_ids])).logits[0, -1].log_softmax(-1)
    best = first[0].positions
    assert best is not None
    assert best[0].top[0].token_id == int(logprobs.argmax())
    assert best[0].top[0].logprob == pytest.approx(float(logprobs.max()), abs=1e-3)


async def test_a_lost_session_is_built_again(subject: Subject):
    prompt_ids, expected = plain_ids(subject, "Once upon a time", 16)
    said = []
    async with running(subject) as up:
        async for deltas in up.client.stream(Ask(prompt_ids, 16, GREEDY)):
            said += [one for delta in deltas for one in delta.ids]
            if len(said) in (3, 9):
                up.engine._sessions.clear()
    assert said == expected


async def test_a_node_that_forgets_at_once_is_an_error(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
):
    def forget(_: Extend) -> Any:
        raise SessionLost("gone")

    prompt_ids, _ = plain_ids(subject, "Once upon a time", 1)
    async with running(subject) as up:
        with pytest.raises(TransportError, match="forgets the session"):
            async for _ in up.client.stream(Ask(prompt_ids, 4, GREEDY)):
                monkeypatch.setattr(up.engine, "_session", forget)


async def test_rows_that_the_node_finds_too_many_are_an_error(subject: Subject):
    async with running(subject, limits=ServerLimits(max_body_bytes=2**12)) as up:
        with pytest.raises(PeerError, match="413"):
            await up.client.complete(Ask((5,) * 40, 4, GREEDY))


async def test_long_prompts_go_in_pieces(subject: Subject, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("veilrun.serve.middle_client._PIECE_BYTES", 3 * 4 * 64)
    monkeypatch.setattr("veilrun.node.middle_engine._PIECE_ROWS", 2)
    prompt_ids, expected = plain_ids(subject, "Lily and Ben went to the big park", 16)
    assert len(prompt_ids) > 6
    async with running(subject) as up:
        assert await answer(up.client, Ask(prompt_ids, 16, GREEDY)) == expected


async def test_leaving_a_stream_ends_the_session(subject: Subject):
    prompt_ids, _ = plain_ids(subject, "One day", 1)
    async with running(subject) as up:
        stream = up.client.stream(Ask(prompt_ids, 200, GREEDY))
        await anext(stream)
        assert up.engine.n_sessions == 1
        await stream.aclose()
        async with asyncio.timeout(5):
            while up.engine.n_sessions:
                await asyncio.sleep(0.01)


async def test_sessions_are_bounded_and_idle_ones_go(subject: Subject):
    prompt_ids, _ = plain_ids(subject, "One day", 1)
    async with running(subject, max_running=1, idle_s=0.5) as up:
        stream = up.client.stream(Ask(prompt_ids, 200, GREEDY))
        await anext(stream)
        with pytest.raises(BusyError) as caught:
            await up.client.complete(Ask(prompt_ids, 2, GREEDY))
        assert caught.value.retry_after_s == 5.0
        await asyncio.sleep(0.6)
        assert await answer(up.client, Ask(prompt_ids, 2, GREEDY))
        await stream.aclose()


async def test_a_session_has_a_longest_length(subject: Subject):
    async with running(subject, max_model_len=8) as up:
        with pytest.raises(NodeRefusal, match="at most 8 rows"):
            await up.client.complete(Ask(tuple(range(3, 10)), 4, GREEDY))
        assert (await up.client.card()).max_model_len == 8


async def test_a_node_with_another_copy_is_refused(subject: Subject, tmp_path: Path):
    whole = encrypt(subject.plain, tmp_path / "out", KEY, kits=tmp_path / "kits")
    async with running(subject) as up:
        up.server._card = type(up.server._card)(
            "m", "e", 512, decode_manifest((whole.folder / MANIFEST_FILE).read_bytes())
        )
        with pytest.raises(VerificationError, match="another key or model"):
            await up.client.complete(Ask((3,), 1, GREEDY))


async def test_what_is_no_request_is_refused(subject: Subject):
    rows = np.zeros((2, 64), np.float32)
    good = encode_request(Extend(SESSION, 0, rows, 1))
    bad = {
        b"": 400,
        good[:-1]: 400,
        good + b"x": 400,
        encode_request(Extend("AB" * 16, 0, rows, 1)): 400,
        encode_request(Extend(SESSION, 0, rows[:, :63], 1)): 400,
        encode_request(Extend(SESSION, 0, rows[:0], 0)): 400,
        encode_request(Extend(SESSION, 0, rows, 3)): 400,
        encode_request(Extend(SESSION, -1, rows, 1)): 400,
        encode_request(Extend(SESSION, 0, rows.astype(np.float64), 1)): 400,  # type: ignore[arg-type]
        encode_request(Extend(SESSION, 5, rows, 1)): 409,
    }
    async with running(subject) as up, aiohttp.ClientSession(up.url) as http:
        for body, status in bad.items():
            async with http.post(MIDDLE_PATH, data=body) as response:
                assert response.status == status, body
        for path in ("/inference/v1/generate", "/v1/completions", "/"):
            async with http.post(path, data=b"{}") as response:
                assert response.status == 404
        assert up.engine.n_sessions == 0
        async with http.post(MIDDLE_PATH, data=good) as response:
            assert response.status == 200
            assert decode_states(await response.read(), n_states=1, hidden=64).shape == (1, 64)
        async with http.post(MIDDLE_PATH, data=good) as response:
            assert response.status == 409, "the session has begun already"
        async with http.get("/metrics") as response:
            text = await response.text()
        assert "veilrun_node_tokens_in_total 6" in text
        assert 'requests_total{outcome="answered"} 1' in text


def test_vllm_does_not_serve_a_middle(subject: Subject, tmp_path: Path):
    from veilrun.cli.node import EngineName

    with pytest.raises(UsageError, match="neither embedding nor head"):
        node_command(subject.encrypted, engine=EngineName.vllm, identity=tmp_path / "identity")


async def test_node_and_proxy_as_processes(subject: Subject, tmp_path: Path):
    node = ["node", str(subject.encrypted), "--port", "0", "--json"]
    proxy = ["proxy", "--key", str(subject.key_file), "--port", "0", "--json"]
    secret = ["--passphrase-file", str(subject.key_file.parent / "passphrase")]
    async with child([*node, "--identity", str(tmp_path / "identity")]) as at:
        command = [*proxy, "--node", at["url"], "--pin", at["pin"], *secret]
        async with (
            child(command) as ready,
            openai.AsyncOpenAI(base_url=ready["url"], api_key="x", max_retries=0) as client,
        ):
            common: dict[str, Any] = {"model": subject.kit.name, "temperature": 0}
            prompt_ids, expected_ids = plain_ids(subject, "Once upon a time", 40)
            whole = text_of(subject, [*prompt_ids, *expected_ids])
            expected = whole[len("Once upon a time") :]
            made = await client.completions.create(
                prompt="Once upon a time", max_tokens=40, **common
            )
            assert made.choices[0].text == expected
            assert made.usage is not None and made.usage.completion_tokens == 40
            stream = await client.completions.create(
                prompt="Once upon a time", max_tokens=40, stream=True, **common
            )
            assert "".join([chunk.choices[0].text async for chunk in stream]) == expected
            stopped = await client.completions.create(
                prompt="Once upon a time", max_tokens=40, stop=["little girl"], **common
            )
            assert stopped.choices[0].text == ", there was a "
    listed = json.loads((subject.encrypted / MANIFEST_FILE).read_text())
    assert listed["ends"] == "client"
