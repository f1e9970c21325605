"""Served tokens per second: encrypted over plain on the same engine, and proxy over node.

Plain node, encrypted node and proxy are processes of their own, all up at once; only one is
asked at a time, and the contenders take turns, so a drifting machine hits them alike. Plain
and encrypted get the same prompts, one as plain ids and one as cipher ids, greedy, with the
end of text biased away, so both generate the same number of tokens.
"""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import statistics
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import torch
from checkpoints import write_llama
from report import Report, spread

from veilrun import bundled
from veilrun.checkpoint.folder import TOKENIZER_FILES, Checkpoint, read_manifest
from veilrun.checkpoint.merkle import weights_root
from veilrun.demo import child
from veilrun.equivariant.client import ClientKit, kits_folder, open_kit
from veilrun.equivariant.compile import encrypt
from veilrun.keys import MasterKey, save_key
from veilrun.transport.tls import parse_pin
from veilrun.wire.generate import GENERATE_PATH, GenerateRequest, SamplingParams, encode_request
from veilrun.wire.manifest import MANIFEST_FILE, encode_manifest

PASSPHRASE = "benchmark"  # noqa: S105 - guards a key that lives as long as the benchmark
N_PROMPT = 24
Load = Callable[[int, bool], Awaitable[int]]
"""(concurrency, stream) -> tokens generated."""


@dataclass(frozen=True, slots=True)
class Subject:
    """One model, plain and encrypted, on disk."""

    name: str
    plain: Path
    encrypted: Path
    key_file: Path
    kit: ClientKit


def run(report: Report, work: Path, n_pairs: int) -> None:
    """Measure both subjects."""
    for subject in (_small(work), _prompter(work)):
        asyncio.run(_measure(report, subject, n_pairs))


def _small(work: Path) -> Subject:
    """8 layers of 768, 57 million weights, with the bundled tokenizer."""
    folder = write_llama(
        work / "small",
        hidden=768,
        intermediate=2048,
        n_layers=8,
        n_heads=12,
        n_kv_heads=12,
        dtype=torch.float32,
        vocab_size=1024,
    )
    for name in TOKENIZER_FILES:
        if (bundled.prompter() / name).exists():
            shutil.copy(bundled.prompter() / name, folder)
    return _subject("llama-8x768", folder, work)


def _prompter(work: Path) -> Subject:
    return _subject("prompter", bundled.prompter(), work)


def _subject(name: str, source: Path, work: Path) -> Subject:
    key, key_file = MasterKey.generate(), work / f"{name}.key"
    save_key(key, key_file, PASSPHRASE, scrypt_log2_n=12)
    made = encrypt(source, work / f"{name}-encrypted", key, kits=kits_folder(key_file))
    kit = open_kit(made.client, key, made.fingerprint)
    plain = work / f"{name}-plain"
    plain.mkdir()
    for item in ("config.json", "generation_config.json", "model.safetensors"):
        if (source / item).exists():
            shutil.copy(source / item, plain)
    with Checkpoint(plain) as weights:
        root = weights_root(weights).hex()
    manifest = replace(read_manifest(made.folder), weights_root=root)
    (plain / MANIFEST_FILE).write_bytes(encode_manifest(manifest))  # the node asks for one
    return Subject(name, plain, made.folder, key_file, kit)


async def _measure(report: Report, subject: Subject, n_pairs: int) -> None:
    passphrase_file = subject.key_file.with_suffix(".passphrase")
    passphrase_file.touch(mode=0o600)
    passphrase_file.write_text(PASSPHRASE)
    shared = ["--port", "0", "--json", "--max-running", "16"]
    identity = ["--identity", str(subject.key_file.parent / "identity")]
    prompts = _prompts(subject)
    async with AsyncExitStack() as stack:
        plain, encrypted = [
            await stack.enter_async_context(child(["node", str(folder), *shared, *identity]))
            for folder in (subject.plain, subject.encrypted)
        ]
        proxy_command = ["proxy", "--key", str(subject.key_file), "--node", encrypted["url"]]
        proxy_command += ["--pin", encrypted["pin"], "--passphrase-file", str(passphrase_file)]
        proxy = await stack.enter_async_context(child([*proxy_command, "--port", "0", "--json"]))
        session = await stack.enter_async_context(aiohttp.ClientSession())
        loads = {
            "plain": _node_load(session, plain, prompts, (2,)),
            "encrypted": _node_load(
                session,
                encrypted,
                [subject.kit.codec.encode(ids) for ids in prompts],
                subject.kit.codec.encode(subject.kit.eos_token_ids),
            ),
            "proxy": _proxy_load(session, proxy, prompts, subject.kit.eos_token_ids),
        }
        for load in loads.values():
            await load(4, False)  # warm up
        for concurrency in (1, 16):
            names = ("encrypted", "plain")
            await _pairs(report, subject, loads, names, concurrency, n_pairs)
        for stream in (False, True):
            for concurrency in (1, 16):
                names = ("proxy", "encrypted")
                await _pairs(report, subject, loads, names, concurrency, n_pairs, stream=stream)


async def _pairs(
    report: Report,
    subject: Subject,
    loads: dict[str, Load],
    names: tuple[str, str],
    concurrency: int,
    n_pairs: int,
    *,
    stream: bool = False,
) -> None:
    speeds: dict[str, list[float]] = {name: [] for name in names}
    cpu_us: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(n_pairs):
        for name in names if turn % 2 == 0 else names[::-1]:
            start, used_s = time.monotonic(), _servers_cpu_s()
            n_tokens = await loads[name](concurrency, stream)
            speeds[name].append(n_tokens / (time.monotonic() - start))
            cpu_us[name].append((_servers_cpu_s() - used_s) / n_tokens * 1e6)
    ratios = [a / b for a, b in zip(speeds[names[0]], speeds[names[1]], strict=True)]
    facts: dict[str, Any] = {
        "subject": subject.name,
        "concurrency": concurrency,
        "stream": stream,
        f"{names[0]}_tokens_per_s": spread(speeds[names[0]]),
        f"{names[1]}_tokens_per_s": spread(speeds[names[1]]),
        "ratio": spread(ratios),
        f"{names[0]}_cpu_us_per_token": spread(cpu_us[names[0]]),
        f"{names[1]}_cpu_us_per_token": spread(cpu_us[names[1]]),
    }
    cpu = [statistics.median(cpu_us[name]) for name in names]
    summary = (
        f"{statistics.median(ratios):.3f} ({facts[f'{names[0]}_tokens_per_s']['median']:.0f} over "
        f"{facts[f'{names[1]}_tokens_per_s']['median']:.0f} tokens/s; "
        f"{cpu[0]:.0f} and {cpu[1]:.0f} CPU us/token)"
    )
    promise = ">= 0.99" if names[1] == "plain" else ">= 0.95" if concurrency == 16 else ""
    how = f"{subject.name} x{concurrency}" + (" streamed" if stream else "")
    report.add(f"{names[0]}/{names[1]}: {how}", facts, summary, promise)


def _prompts(subject: Subject) -> list[tuple[int, ...]]:
    chooser = random.Random(5)  # noqa: S311 - prompts of a benchmark
    return [
        tuple(chooser.randrange(16, subject.kit.codec.vocab_size) for _ in range(N_PROMPT))
        for _ in range(16)
    ]


def _n_tokens(concurrency: int) -> int:
    return 96 if concurrency == 1 else 64


def _node_load(
    session: aiohttp.ClientSession,
    ready: dict[str, Any],
    prompts: list[tuple[int, ...]],
    eos: tuple[int, ...],
) -> Load:
    pinned = aiohttp.Fingerprint(parse_pin(ready["pin"]))

    async def one(ids: tuple[int, ...], max_tokens: int, stream: bool) -> int:
        params = SamplingParams(
            max_tokens=max_tokens, temperature=0.0, logit_bias=dict.fromkeys(eos, -100.0)
        )
        body = encode_request(GenerateRequest(ids, params, stream=stream, include_usage=stream))
        url = ready["url"] + GENERATE_PATH
        async with session.post(url, data=body, ssl=pinned) as response:
            return await _usage(response, stream=stream)

    return _load(one, prompts)


def _proxy_load(
    session: aiohttp.ClientSession,
    ready: dict[str, Any],
    prompts: list[tuple[int, ...]],
    eos: tuple[int, ...],
) -> Load:
    async def one(ids: tuple[int, ...], max_tokens: int, stream: bool) -> int:
        body: dict[str, Any] = {
            "model": ready["model"],
            "prompt": list(ids),
            "max_tokens": max_tokens,
            "temperature": 0,
            "stream": stream,
            "logit_bias": {str(one): -100 for one in eos},
        }
        if stream:
            body["stream_options"] = {"include_usage": True}
        async with session.post(ready["url"] + "/completions", json=body) as response:
            return await _usage(response, stream=stream)

    return _load(one, prompts)


def _load(
    one: Callable[[tuple[int, ...], int, bool], Awaitable[int]], prompts: list[tuple[int, ...]]
) -> Load:
    async def load(concurrency: int, stream: bool) -> int:
        n_tokens = _n_tokens(concurrency)
        asked = [one(ids, n_tokens, stream) for ids in prompts[:concurrency]]
        return sum(await asyncio.gather(*asked))

    return load


async def _usage(response: aiohttp.ClientResponse, *, stream: bool) -> int:
    """Tokens generated, by the answer's own account; a stream is read to its end."""
    if response.status != 200:
        raise RuntimeError(f"{response.url} answered {response.status}: {await response.text()}")
    if not stream:
        return int((await response.json())["usage"]["completion_tokens"])
    last = b""
    async for line in response.content:
        if b'"usage": {' in line or b'"usage":{' in line:
            last = line
    return int(json.loads(last.removeprefix(b"data: "))["usage"]["completion_tokens"])


def _servers_cpu_s() -> float:
    """CPU seconds of all nodes and the proxy so far; those that are not asked use none."""
    times = [process.cpu_times() for process in psutil.Process().children()]
    return float(sum(one.user + one.system for one in times))
