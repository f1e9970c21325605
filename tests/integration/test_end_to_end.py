"""The main job on a real checkpoint: encrypt, node, proxy, the real openai client, as processes.

And the canary: what a node's operator can see of it holds no plaintext, no plain ids, no
tokenizer and no key.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openai
import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from veilrun.demo import child
from veilrun.equivariant.client import ClientKit, find_client_kit, kits_folder
from veilrun.equivariant.compile import encrypt
from veilrun.keys import MasterKey, save_key
from veilrun.transport import tls
from veilrun.transport.tap import Recording, tap

SECRET = bytes(range(100, 132))
PASSPHRASE = "a passphrase that no node may see"
OPENINGS = [
    "Once upon a time", "One day", "Lily and Ben", "The little dog", "There was a big tree",
    "Tom had a red ball", "In the park", "Mom said", "It was a sunny day", "A cat named Max",
    "The bird could not fly", "Sara was sad", "Tim liked to play", "The king had a ring",
    "On the farm", "The girl saw a frog", "He wanted to help", "She was very happy",
    "The boy found a box", "At night the moon",
]  # fmt: skip
CANARY = "Zanzibar quietly photographs purple elephants"


@dataclass(frozen=True)
class Subject:
    plain: Path
    encrypted: Path
    key_file: Path
    kit: ClientKit


@pytest.fixture(scope="module")
def subject(stories: Path, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    work = tmp_path_factory.mktemp("end-to-end")
    key, key_file = MasterKey(SECRET), work / "my.key"
    save_key(key, key_file, PASSPHRASE, scrypt_log2_n=12)
    (work / "passphrase").touch(mode=0o600)
    (work / "passphrase").write_text(PASSPHRASE)
    made = encrypt(stories, work / "encrypted", key, kits=kits_folder(key_file))
    kit = find_client_kit(key_file, key, made.fingerprint)
    return Subject(stories, made.folder, key_file, kit)


@dataclass(frozen=True)
class Running:
    client: openai.AsyncOpenAI
    node: dict[str, Any]
    recording: Recording


@asynccontextmanager
async def running(subject: Subject, work: Path) -> AsyncIterator[Running]:
    """Node and proxy as processes, with a tap between them."""
    identity = work / "node-identity"
    node_command = ["node", str(subject.encrypted), "--port", "0", "--json"]
    async with child([*node_command, "--identity", str(identity)]) as node:
        trusts = tls.client_context(tls.ensure_identity(identity).certificate_pem)
        own = tls.ensure_identity(work / "tap-identity")
        port = urlsplit(node["url"]).port or 0
        async with tap(tls.server_context(own), "127.0.0.1", port, trusts) as (at, recording):
            proxy_command = ["proxy", "--key", str(subject.key_file), "--pin", own.pin]
            proxy_command += ["--node", f"https://127.0.0.1:{at}", "--port", "0", "--json"]
            secret = ["--passphrase-file", str(subject.key_file.parent / "passphrase")]
            async with (
                child([*proxy_command, *secret]) as ready,
                openai.AsyncOpenAI(base_url=ready["url"], api_key="x", max_retries=0) as client,
            ):
                yield Running(client, node, recording)


def plain_continuation(subject: Subject, prompt: str, n_tokens: int) -> str:
    """What plain transformers says, greedily."""
    tokenizer = AutoTokenizer.from_pretrained(subject.plain)
    model = AutoModelForCausalLM.from_pretrained(subject.plain, dtype=torch.float32)
    inputs = tokenizer(prompt, return_tensors="pt")
    made = model.generate(**inputs, max_new_tokens=n_tokens, do_sample=False)[0]
    whole: str = tokenizer.decode(made, skip_special_tokens=True)
    return whole[len(tokenizer.decode(inputs["input_ids"][0], skip_special_tokens=True)) :]


async def test_twenty_prompts_say_what_the_plain_model_says(subject: Subject, tmp_path: Path):
    async with running(subject, tmp_path) as up:
        model = subject.kit.name
        answers = await asyncio.gather(
            *(
                up.client.completions.create(
                    model=model, prompt=prompt, max_tokens=64, temperature=0
                )
                for prompt in OPENINGS
            )
        )
        for prompt, answer in zip(OPENINGS, answers, strict=True):
            assert answer.choices[0].text == plain_continuation(subject, prompt, 64)
            assert answer.usage is not None and answer.usage.completion_tokens <= 64


async def test_thirty_two_at_once_streams_and_logprobs(subject: Subject, tmp_path: Path):
    async with running(subject, tmp_path) as up:
        ask = up.client.completions.create
        common: dict[str, Any] = {"model": subject.kit.name, "max_tokens": 24, "temperature": 0}

        async def streamed(prompt: str) -> str:
            stream = await ask(prompt=prompt, stream=True, **common)
            return "".join([chunk.choices[0].text async for chunk in stream])

        prompts = (OPENINGS * 2)[:32]
        texts = await asyncio.gather(*map(streamed, prompts))
        assert texts == [plain_continuation(subject, one, 24) for one in prompts]
        stopped = await ask(prompt="Once upon a time", stop=["little girl"], **common)
        assert stopped.choices[0].text == ", there was a "
        assert stopped.choices[0].finish_reason == "stop"
        scored = await ask(prompt="Once upon a time", logprobs=3, **common)
        logprobs = scored.choices[0].logprobs
        assert logprobs is not None and logprobs.tokens is not None
        assert "".join(logprobs.tokens) == scored.choices[0].text
        expected = first_logprob(subject, "Once upon a time")
        assert logprobs.token_logprobs is not None
        assert logprobs.token_logprobs[0] == pytest.approx(expected, abs=1e-3)


def first_logprob(subject: Subject, prompt: str) -> float:
    tokenizer = AutoTokenizer.from_pretrained(subject.plain)
    model = AutoModelForCausalLM.from_pretrained(subject.plain, dtype=torch.float32)
    with torch.no_grad():
        logits = model(**tokenizer(prompt, return_tensors="pt")).logits[0, -1]
    return float(logits.log_softmax(-1).max())


async def test_a_cancelled_stream_stops_the_node(subject: Subject, tmp_path: Path):
    async with running(subject, tmp_path) as up:
        stream = await up.client.completions.create(
            model=subject.kit.name, prompt="Once", max_tokens=450, temperature=0, stream=True
        )
        async for _ in stream:
            break
        await stream.close()
        for _ in range(100):
            if (await metric(up.node, "veilrun_node_answers_running")) == 0:
                break
            await asyncio.sleep(0.1)
        assert await metric(up.node, "veilrun_node_answers_running") == 0
        assert await metric(up.node, "veilrun_node_tokens_out_total") < 450
        again = await up.client.completions.create(
            model=subject.kit.name, prompt="Once upon a time", max_tokens=4, temperature=0
        )
        assert again.choices[0].text == plain_continuation(subject, "Once upon a time", 4)


async def metric(node: dict[str, Any], name: str) -> float:
    import aiohttp

    pinned = aiohttp.Fingerprint(tls.parse_pin(node["pin"]))
    async with (
        aiohttp.ClientSession() as session,
        session.get(node["url"] + "/metrics", ssl=pinned) as response,
    ):
        lines = (await response.text()).splitlines()
    (value,) = [float(line.split()[-1]) for line in lines if line.startswith(name)]
    return value


async def test_canary_nothing_readable_reaches_the_node(subject: Subject, tmp_path: Path):
    tokenizer = AutoTokenizer.from_pretrained(subject.plain)
    plain_ids = tokenizer(CANARY)["input_ids"]
    async with running(subject, tmp_path) as up:
        answer = await up.client.completions.create(
            model=subject.kit.name,
            prompt=CANARY,
            max_tokens=48,
            temperature=0,
            stop=["a stop string that stays here"],
            user="alice@example.org",
        )
        node = node_process(subject.encrypted)
        environment = json.dumps(node.environ()) + " ".join(node.cmdline())
        opened = [file.path for file in node.open_files()]
        maps = [item.path for item in node.memory_maps()]
        traffic = bytes(up.recording.to_node + up.recording.from_node)
        answer_ids = tokenizer(answer.choices[0].text, add_special_tokens=False)["input_ids"]
    sent = str(list(subject.kit.codec.encode(plain_ids))).replace(" ", "").encode()
    assert sent[1:-1] in traffic.replace(b" ", b""), "the tap saw the request itself"
    words = [*CANARY.split(), *answer.choices[0].text.split(), "alice", "stop string"]
    readable = [word.encode() for word in words if len(word) > 4]
    key_forms = [SECRET, SECRET.hex().encode(), PASSPHRASE.encode()]
    for secret in [*readable, *key_forms, id_run(plain_ids[-8:]), id_run(answer_ids[:8])]:
        assert secret not in traffic.replace(b" ", b"")
        assert secret not in environment.encode()
    names = {path.name for path in subject.encrypted.rglob("*")}
    assert not [name for name in names if "token" in name or "vocab" in name or "merges" in name]
    for path in subject.encrypted.rglob("*"):
        assert not any(secret in path.read_bytes() for secret in key_forms)
    trusted = (str(subject.key_file), str(subject.kit.folder), str(subject.plain))
    assert not [path for path in opened + maps if path.startswith(trusted)]


def id_run(ids: list[int]) -> bytes:
    return ",".join(map(str, ids)).encode()


def node_process(folder: Path) -> psutil.Process:
    for one in psutil.Process().children(recursive=True):
        if str(folder) in one.cmdline():
            return one
    raise AssertionError("the node runs as a process of its own")
