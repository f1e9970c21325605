"""`veilrun proxy` as a process of its own, `veilrun chat` in front of it, and what both refuse."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web
from openai import AsyncOpenAI
from typer.testing import CliRunner

from integration.fake_node import FakeNode, running
from integration.proxied import MODEL, Proxied, TestKit, serving
from veilrun.cli import app
from veilrun.cli.chat import harmless
from veilrun.cli.proxy import _expected
from veilrun.equivariant.client import kits_folder, list_kits
from veilrun.equivariant.codec import Codec
from veilrun.errors import (
    KeyFileError,
    PeerError,
    RefusedError,
    TransportError,
    UsageError,
    VerificationError,
)
from veilrun.keys import MasterKey, load_key, save_key
from veilrun.serve import service
from veilrun.serve.node_address import pinned_node
from veilrun.transport.tls import ensure_identity
from veilrun.types import EE

PASSPHRASE = "open sesame"
PIN = "sha256:" + "00" * 32


def trusted_side(kit: TestKit, folder: Path) -> tuple[Path, Codec]:
    """A key file and, beside it, a client kit as `veilrun encrypt` leaves it."""
    key, key_file = MasterKey.generate(), folder / "my.key"
    save_key(key, key_file, PASSPHRASE, scrypt_log2_n=10)
    (folder / "passphrase").touch(mode=0o600)
    (folder / "passphrase").write_text(PASSPHRASE + "\n")
    return key_file, add_kit(kit, key_file, key, MODEL, "digest")


def add_kit(kit: TestKit, key_file: Path, key: MasterKey, name: str, digest: str) -> Codec:
    codec = Codec(key, digest, "llama", 512)
    facts = {
        "format": "veilrun-client-kit",
        "version": 1,
        "name": name,
        "digest": digest,
        "family": "llama",
        "vocab_size": 512,
        "max_model_len": 512,
        "eos_token_ids": [2],
        "weights_root": "0" * 64,
    }
    home = kits_folder(key_file) / codec.fingerprint
    shutil.copytree(kit.tokenizer_folder, home)
    (home / "client.json").write_text(json.dumps(facts))
    return codec


@asynccontextmanager
async def proxy_process(*arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "veilrun.cli", "proxy", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def test_the_process_from_ready_line_to_sigterm(kit, identity_folder, tmp_path):
    key_file, codec = trusted_side(kit, tmp_path)
    node = FakeNode(512, codec.fingerprint, pause_s=0.02)
    async with running(node, identity_folder):
        secret = ["--key", str(key_file), "--passphrase-file", str(tmp_path / "passphrase")]
        address = ["--node", node.url, "--pin", node.pin, "--port", "0", "--json"]
        async with proxy_process(*secret, *address) as process:
            assert process.stdout is not None
            ready = json.loads(await process.stdout.readline())
            url = ready.pop("url")
            assert ready == {
                "model": MODEL,
                "fingerprint": codec.fingerprint,
                "mode": EE.name,
                "pin": None,
                "certificate": None,
            }
            assert url.startswith("http://127.0.0.1:") and url.endswith("/v1")
            async with AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as openai:
                stream = await openai.completions.create(
                    model=MODEL, prompt=[403], max_tokens=20, stream=True
                )
                texts = []
                async for chunk in stream:
                    if not texts:
                        process.send_signal(signal.SIGTERM)
                    texts.append(chunk.choices[0].text)
            _, log = await asyncio.wait_for(process.communicate(), 10)
    # The answer in flight was complete although the process had been asked to end.
    assert "".join(texts) == " Once" * 20
    assert process.returncode == 0
    assert b"Traceback" not in log


async def test_a_node_of_another_key_is_refused_before_anything_listens(
    kit, identity_folder, tmp_path, monkeypatch
):
    key_file, codec = trusted_side(kit, tmp_path)
    monkeypatch.setenv("VEILRUN_PASSPHRASE", PASSPHRASE)
    monkeypatch.setattr(logging.getLogger("veilrun"), "handlers", [])  # it adds one of its own
    node = FakeNode(512, "cd" * 16)
    async with running(node, identity_folder):
        address = ["--node", node.url, "--pin", node.pin]
        result = await asyncio.to_thread(invoke, "proxy", "--key", str(key_file), *address)
    assert isinstance(result.exception, VerificationError)
    assert {"cd" * 16, codec.fingerprint} <= set(re.findall(r"\w+", str(result.exception)))
    assert node.requests == []


async def test_a_node_cannot_choose_the_model(kit, identity_folder, tmp_path, monkeypatch):
    """Its fingerprint is one of ours, of a model that was not asked for."""
    key_file, codec = trusted_side(kit, tmp_path)
    other = add_kit(kit, key_file, load_key(key_file, PASSPHRASE), "me/[b]other", "other digest")
    monkeypatch.setenv("VEILRUN_PASSPHRASE", PASSPHRASE)
    monkeypatch.setattr(logging.getLogger("veilrun"), "handlers", [])
    node = FakeNode(512, other.fingerprint)
    async with running(node, identity_folder):
        command = ["proxy", "--key", str(key_file), "--node", node.url, "--pin", node.pin]
        undecided = invoke(*command)
        assert isinstance(undecided.exception, RefusedError)
        for words in (MODEL, codec.fingerprint, "me/[b]other", other.fingerprint, "--model"):
            assert words in str(undecided.exception)
        unknown = invoke(*command, "--model", "me/third")
        assert isinstance(unknown.exception, UsageError) and MODEL in str(unknown.exception)
        assert node.n_card_requests == 0
        for name in (MODEL, codec.fingerprint):
            result = await asyncio.to_thread(invoke, *command, "--model", name)
            assert isinstance(result.exception, VerificationError)
            assert codec.fingerprint in str(result.exception)
            assert other.fingerprint in str(result.exception)
    assert node.requests == []


def test_two_models_of_one_name_are_told_apart_by_fingerprint(kit, tmp_path):
    key_file, codec = trusted_side(kit, tmp_path)
    other = add_kit(kit, key_file, load_key(key_file, PASSPHRASE), MODEL, "other digest")
    both = sorted([codec.fingerprint, other.fingerprint])
    assert list_kits(key_file) == [(one, MODEL) for one in both]
    with pytest.raises(RefusedError, match="more than one"):
        _expected(key_file, MODEL)
    assert _expected(key_file, other.fingerprint) == other.fingerprint


async def test_other_machines_are_served_over_tls_only(kit, identity_folder, tmp_path, monkeypatch):
    key_file, codec = trusted_side(kit, tmp_path)
    api_key_file = tmp_path / "api-key"
    api_key_file.touch(mode=0o600)
    api_key_file.write_text("sesame")
    node = FakeNode(512, codec.fingerprint)
    async with running(node, identity_folder):
        secret = ["--key", str(key_file), "--passphrase-file", str(tmp_path / "passphrase")]
        address = ["--node", node.url, "--pin", node.pin, "--host", "0.0.0.0", "--port", "0"]
        own = ["--api-key-file", str(api_key_file), "--identity", str(tmp_path / "own"), "--json"]
        async with proxy_process(*secret, *address, *own) as process:
            assert process.stdout is not None
            ready = json.loads(await process.stdout.readline())
            url = ready["url"]
            assert url.startswith("https://127.0.0.1:")
            assert ready["pin"] == ensure_identity(tmp_path / "own").pin
            monkeypatch.setenv("SSL_CERT_FILE", ready["certificate"])  # as the proxy advises
            async with AsyncOpenAI(base_url=url, api_key="sesame", max_retries=0) as openai:
                assert (await openai.models.list()).data[0].id == MODEL
            monkeypatch.delenv("SSL_CERT_FILE")
            ask = ["chat", "--api-key-file", str(api_key_file), "--max-tokens", "1", "Hello"]

            async def chat(*arguments: str):
                chatting = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "veilrun.cli", *ask, *arguments),
                    stdout=asyncio.subprocess.PIPE,
                    stderr=asyncio.subprocess.PIPE,
                )
                _, words = await chatting.communicate()
                return chatting.returncode, " ".join(words.decode().split())

            assert await chat("--url", url, "--pin", ready["pin"]) == (0, "")
            code, words = await chat("--url", url, "--pin", PIN)
            assert code == VerificationError.exit_code and ready["pin"] in words
            code, words = await chat("--url", url)
            assert code == VerificationError.exit_code and "--pin" in words
            code, _ = await chat("--url", url.replace("https", "http"))
            assert code == TransportError.exit_code
    assert len(node.requests) == 1


async def test_idle_connections_of_applications_end(kit, identity_folder, monkeypatch):
    """aiohttp would keep them for an hour; a test that waits would take 75 s."""
    given = {}

    def runner(app, **options):
        given.update(options)
        raise UsageError("far enough")

    node = FakeNode(512, kit.codec.fingerprint)
    async with running(node, identity_folder):
        monkeypatch.setattr(service.web, "AppRunner", runner)
        listener = service.Listener(identity_folder, port=0)
        address = pinned_node(node.url, node.pin)
        with pytest.raises(UsageError, match="far enough"):
            await service.run_proxy(kit, address, listener, lambda _: None)
    assert given["keepalive_timeout"] == 75


def invoke(*arguments: str):
    return CliRunner().invoke(app, arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (["--node", "https://x:1"], UsageError, "--pin is missing"),
        (["--node", "https://x:1", "--pin", "sha256:12"], UsageError, "64 hex digits"),
        (["--node", "http://127.0.0.1:1", "--pin", PIN], RefusedError, "must begin with https"),
        (["--node", "https://x:1/path", "--pin", PIN], UsageError, "nothing more"),
        (["--node", "https://me:pw@x:1", "--pin", PIN], UsageError, "nothing more"),
        (["--node", "https://x:port", "--pin", PIN], UsageError, "not a URL"),
        (["--node", "https://x:1", "--pin", PIN, "--host", "0.0.0.0"], RefusedError, "API key"),
        (["--node", "http://x:1", "PLAIN"], RefusedError, "this machine only"),
        (["--node", "http://[::1]:1", "--pin", PIN, "PLAIN"], UsageError, "no certificate"),
        (["--node", "https://x:1", "--pin", PIN, "--api-key-file", "/"], UsageError, "cannot read"),
        (["--node", "https://x:1", "--pin", PIN, "--identity", "i"], UsageError, "plain HTTP"),
        (["--node", "https://x:1", "--pin", PIN], KeyFileError, "no client kit"),
    ],
)
def test_refused_before_any_connection(monkeypatch, arguments, error, words):
    monkeypatch.delenv("VEILRUN_API_KEY", raising=False)
    monkeypatch.setenv("VEILRUN_PASSPHRASE", PASSPHRASE)
    plain = "--insecure-plain-http-for-loopback-only"
    arguments = [plain if one == "PLAIN" else one for one in arguments]
    result = invoke("proxy", "--key", "/nowhere/my.key", *arguments)
    assert isinstance(result.exception, error), result.exception
    assert "pw" not in str(result.exception)
    assert re.search(words, str(result.exception))


def test_an_empty_api_key_is_no_key(monkeypatch, tmp_path):
    (tmp_path / "empty").touch(mode=0o600)
    (tmp_path / "empty").write_text("\n")
    common = ["proxy", "--key", "k", "--node", "https://x:1", "--pin", PIN, "--host", "0.0.0.0"]
    assert "one line" in str(invoke(*common, "--api-key-file", str(tmp_path / "empty")).exception)
    monkeypatch.setenv("VEILRUN_API_KEY", "")
    assert "is empty" in str(invoke(*common).exception)


# --- chat --------------------------------------------------------------------------------


async def test_one_question(served: Proxied):
    served.say("Once upon a time.")
    url = f"{served.base_url}/v1"
    result = await asyncio.to_thread(invoke, "chat", "--url", url, "--max-tokens", "9", "Hello [b]")
    assert (result.exit_code, result.stdout) == (0, "Once upon a time.\n")
    assert "Hello [b]" in served.text_side._backend.decode(list(served.heard()))
    assert served.node.requests[0].sampling_params.max_tokens == 9
    result = await asyncio.to_thread(invoke, "chat", "--url", url, "--json", "Hello")
    assert json.loads(result.stdout) == {"model": MODEL, "answer": "Once upon a time."}


async def test_a_conversation_goes_on_after_an_error(served: Proxied):
    served.say("Fine.")

    def converse():
        return CliRunner().invoke(
            app,
            ["chat", "--url", f"{served.base_url}/v1", "--system", "Be brief"],
            input=f"First\n\n{'too long ' * 400}\nSecond\n",
        )

    result = await asyncio.to_thread(converse)
    assert result.exit_code == 0
    assert result.stdout.count("Fine.") == 2
    assert "maximum context length" in result.stderr
    heard = served.text_side._backend.decode(list(served.heard()))
    assert heard.split() == (
        "system: Be brief user: First assistant: Fine. user: Second assistant:".split()
    )


async def test_chat_says_whose_fault_it_is(served: Proxied, unused_tcp_port):
    url = f"{served.base_url}/v1"
    served.node.fault = "garbage"
    faults = {
        ("--url", url, "--model", "gpt-4"): UsageError,
        ("--url", url): PeerError,
        ("--url", f"http://127.0.0.1:{unused_tcp_port}/v1"): TransportError,
        ("--url", "no url"): UsageError,
        ("--url", url + "/nowhere"): UsageError,
    }
    for arguments, kind in faults.items():
        result = await asyncio.to_thread(invoke, "chat", *arguments, "Hello")
        assert isinstance(result.exception, kind), (arguments, result.exception)
    assert isinstance(invoke("chat", "--json").exception, UsageError)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (["--url", "http://proxy.example:8080/v1"], RefusedError, "plain HTTP would show"),
        (["--url", "HTTP://10.0.0.1/v1"], RefusedError, "plain HTTP would show"),
        (["--url", "ws://proxy.example/v1"], UsageError, "not the URL"),
        (["--url", "http://[::1/v1"], UsageError, "not the URL"),
        (["--url", "http://127.0.0.1/v1", "--pin", PIN], UsageError, "no certificate"),
        (["--url", "https://proxy.example/v1", "--pin", "sha256:12"], UsageError, "64 hex digits"),
    ],
)
def test_chat_says_nothing_where_others_could_listen(arguments, error, words):
    result = invoke("chat", "--model", "m", *arguments, "Hello")
    assert isinstance(result.exception, error), result.exception
    assert words in str(result.exception)


async def test_chat_follows_no_redirect(served: Proxied):
    async def redirect(request):
        raise web.HTTPTemporaryRedirect(f"{served.base_url}/v1/chat/completions")

    away = web.Application()
    away.add_routes([web.post("/v1/chat/completions", redirect)])
    async with serving(away) as port:
        url = f"http://127.0.0.1:{port}/v1"
        result = await asyncio.to_thread(invoke, "chat", "--url", url, "--model", MODEL, "Hello")
    assert "307" in str(result.exception) and served.node.requests == []


def test_an_answer_cannot_steer_the_terminal():
    text = "a\x1b[2J\x07\x9b31m\r\x7f\tb\n 寿司 👩\u200d🚀"
    shown = harmless(text)
    assert not set(shown) & set("\x1b\x07\x9b\r\x7f")
    assert shown.endswith("\tb\n 寿司 👩\u200d🚀")
