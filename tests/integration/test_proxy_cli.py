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
from openai import AsyncOpenAI
from typer.testing import CliRunner

from integration.fake_node import FakeNode, running
from integration.proxied import MODEL, Proxied, TestKit
from veilrun.cli import app
from veilrun.cli.chat import harmless
from veilrun.equivariant.client import kits_folder
from veilrun.equivariant.codec import Codec
from veilrun.errors import KeyFileError, PeerError, RefusedError, TransportError, UsageError
from veilrun.keys import MasterKey, save_key
from veilrun.types import EE

PASSPHRASE = "open sesame"
PIN = "sha256:" + "00" * 32


def trusted_side(kit: TestKit, folder: Path) -> tuple[Path, Codec]:
    """A key file and, beside it, a client kit as `veilrun encrypt` leaves it."""
    key, key_file = MasterKey.generate(), folder / "my.key"
    save_key(key, key_file, PASSPHRASE, scrypt_log2_n=10)
    codec = Codec(key, "digest", "llama", 512)
    facts = {
        "format": "veilrun-client-kit",
        "version": 1,
        "name": MODEL,
        "digest": "digest",
        "family": "llama",
        "vocab_size": 512,
        "max_model_len": 512,
        "eos_token_ids": [2],
    }
    home = kits_folder(key_file) / codec.fingerprint
    shutil.copytree(kit.tokenizer_folder, home)
    (home / "client.json").write_text(json.dumps(facts))
    (folder / "passphrase").write_text(PASSPHRASE + "\n")
    return key_file, codec


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
            assert ready == {"model": MODEL, "fingerprint": codec.fingerprint, "mode": EE.name}
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
    key_file, _ = trusted_side(kit, tmp_path)
    monkeypatch.setenv("VEILRUN_PASSPHRASE", PASSPHRASE)
    monkeypatch.setattr(logging.getLogger("veilrun"), "handlers", [])  # it adds one of its own
    node = FakeNode(512, "cd" * 16)
    async with running(node, identity_folder):
        address = ["--node", node.url, "--pin", node.pin]
        result = await asyncio.to_thread(invoke, "proxy", "--key", str(key_file), *address)
    assert result.exception.exit_code == 3
    assert "was not made with the key" in str(result.exception)
    assert node.requests == []


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
        (["--node", "https://x:1", "--pin", PIN], KeyFileError, "cannot read the key file"),
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


def test_an_answer_cannot_steer_the_terminal():
    text = "a\x1b[2J\x07\x9b31m\r\x7f\tb\n 寿司 👩\u200d🚀"
    shown = harmless(text)
    assert not set(shown) & set("\x1b\x07\x9b\r\x7f")
    assert shown.endswith("\tb\n 寿司 👩\u200d🚀")
