"""The whole loop on the bundled model: key, encrypt, check, node, proxy, a real OpenAI client.

Node and proxy are processes of their own, started as a user starts them. Between them sits a
tap, so that what the demo shows of the node's view is what really went over the line.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import secrets
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from veilrun import bundled, config
from veilrun.equivariant import agreement
from veilrun.equivariant.client import ClientKit, find_client_kit, kits_folder
from veilrun.equivariant.compile import Encryption, encrypt
from veilrun.errors import TransportError, UsageError
from veilrun.keys import MasterKey, save_key
from veilrun.transport import tls
from veilrun.transport.tap import Recording, tap

PROMPT: Final = "But, soft! what light through yonder window breaks?"
START_TIMEOUT_S: Final = 120.0
"""A cold start imports torch; on a busy machine that alone takes half a minute."""

OnStep = Callable[[str], None]
OnText = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Story:
    """What each side had at the end.

    seen_ids, seen_as_text: the prompt as the node got it, and read with the public tokenizer.
    answered_ids, answered_as_text: the answer as the node gave it, likewise.
    """

    typed: str
    answer: str
    seen_ids: tuple[int, ...]
    seen_as_text: str
    answered_ids: tuple[int, ...]
    answered_as_text: str
    encryption: Encryption
    agreement: agreement.Agreement
    mode_header: str


async def tell(prompt: str, on_step: OnStep, on_text: OnText) -> Story:
    """Run the loop in a temporary folder.

    on_step: told what happens next. on_text: told each piece of the answer as it streams in.

    Raises:
        UsageError: the `openai` package is missing.
        TransportError: a process did not start.
    """
    with tempfile.TemporaryDirectory(prefix="veilrun-demo-") as folder:
        work = Path(folder)
        on_step("making a key and encrypting the bundled model")
        key_file, made, kit = _encrypt(work)
        on_step("starting node (their machine) and proxy (yours); comparing with the plain model")
        checking = asyncio.create_task(asyncio.to_thread(_check, made, kit))
        async with _serving(work, key_file, made) as (url, recording):
            agreed = await checking
            on_step(f"asking through the OpenAI client at {url}")
            answer, header = await _ask(url, kit.name, prompt, on_text)
        seen, answered = _ids_in(recording.to_node), _ids_in(recording.from_node)
        return Story(
            typed=prompt,
            answer=answer,
            seen_ids=seen,
            seen_as_text=_read(kit, seen),
            answered_ids=answered,
            answered_as_text=_read(kit, answered),
            encryption=made,
            agreement=agreed,
            mode_header=header,
        )


def _encrypt(work: Path) -> tuple[Path, Encryption, ClientKit]:
    key_file, passphrase_file = work / "my.key", work / "passphrase"
    passphrase = secrets.token_urlsafe(16)
    passphrase_file.touch(mode=0o600)
    passphrase_file.write_text(passphrase)
    key = MasterKey.generate()
    save_key(key, key_file, passphrase)
    made = encrypt(bundled.prompter(), work / "out", key, kits=kits_folder(key_file))
    return key_file, made, find_client_kit(key_file, key, made.fingerprint)


def _check(made: Encryption, kit: ClientKit) -> agreement.Agreement:
    from transformers.utils import logging

    logging.disable_progress_bar()
    plain = bundled.prompter()
    windows = agreement.windows(plain, agreement.SAMPLE_TEXT, n_positions=256, width=128)
    return agreement.measure(plain, made.folder, kit.codec, windows, "float32")


@contextlib.asynccontextmanager
async def _serving(
    work: Path, key_file: Path, made: Encryption
) -> AsyncIterator[tuple[str, Recording]]:
    """Node and proxy with a tap between them; yields the proxy's base URL and the recording."""
    identity = work / "node-identity"
    node = ["node", str(made.folder), "--port", "0", "--identity", str(identity), "--json"]
    async with child(node) as node_ready:
        node_port = urlsplit(node_ready["url"]).port or 0
        trusts_node = tls.client_context(tls.ensure_identity(identity).certificate_pem)
        own = tls.ensure_identity(work / "tap-identity")
        listening = tap(tls.server_context(own), "127.0.0.1", node_port, trusts_node)
        async with listening as (tap_port, recording):
            address = ["--node", f"https://127.0.0.1:{tap_port}", "--pin", own.pin]
            secret = ["--key", str(key_file), "--passphrase-file", str(work / "passphrase")]
            async with child(["proxy", *secret, *address, "--port", "0", "--json"]) as ready:
                yield ready["url"], recording


@contextlib.asynccontextmanager
async def child(arguments: list[str]) -> AsyncIterator[dict[str, Any]]:
    """A veilrun command as a process of its own; yields the JSON line that it prints when ready.

    Its environment holds none of our secrets. It gets SIGTERM in the end, as a service would.

    Raises:
        TransportError: it ended, or said nothing within START_TIMEOUT_S.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "veilrun.cli"),
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=(log := tempfile.TemporaryFile()),
        env=config.environment_without_secrets(),
    )
    try:
        if process.stdout is None:
            raise TransportError(f"veilrun {arguments[0]} has no output")
        try:
            line = await asyncio.wait_for(process.stdout.readline(), START_TIMEOUT_S)
            ready = json.loads(line)
        except (TimeoutError, ValueError) as error:
            log.seek(0)
            words = log.read()[-2000:].decode(errors="replace").strip()
            raise TransportError(f"veilrun {arguments[0]} did not start: {words}") from error
        yield ready
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()
        log.close()


async def _ask(url: str, model: str, prompt: str, on_text: OnText) -> tuple[str, str]:
    """The streamed answer, and the header that names the mode."""
    try:
        from openai import AsyncOpenAI
    except ImportError:
        raise UsageError("the demo asks through the openai package: pip install openai") from None
    async with AsyncOpenAI(base_url=url, api_key="not-needed", max_retries=0) as client:
        raw = await client.chat.completions.with_raw_response.create(
            model=model,
            messages=[{"role": "user", "content": prompt}],
            max_tokens=96,
            temperature=0,
            stream=True,
        )
        pieces = []
        async for chunk in raw.parse():
            piece = (chunk.choices[0].delta.content or "") if chunk.choices else ""
            pieces.append(piece)
            on_text(piece)
        return "".join(pieces), raw.headers.get("x-veilrun-mode", "")


def _ids_in(traffic: bytes | bytearray) -> tuple[int, ...]:
    """All token ids in recorded traffic, in order."""
    lists: Iterator[bytes] = (m[1] for m in re.finditer(rb'"token_ids": ?\[([\d, ]*)\]', traffic))
    return tuple(int(one) for ids in lists for one in ids.replace(b" ", b"").split(b",") if one)


def _read(kit: ClientKit, ids: tuple[int, ...]) -> str:
    """Cipher ids read as if they were plain: what the public tokenizer makes of them."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(kit.tokenizer_folder, local_files_only=True)
    return str(tokenizer.decode(ids))
