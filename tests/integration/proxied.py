"""A proxy in front of a fake node, over real sockets, and what tests do with it."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from integration.fake_node import FakeNode, running, saying
from veilrun.equivariant.codec import Codec
from veilrun.keys import MasterKey
from veilrun.serve.node_address import pinned_node
from veilrun.serve.node_client import NodeClient, NodeTimeouts
from veilrun.serve.proxy import ProxySettings, create_app
from veilrun.serve.text import TextSide

MODEL = "me/stories"
EOS_ID = 2
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if message.role == "system" and not loop.first -%}
{{- raise_exception("the system message comes first") -}}
{%- endif -%}
{{- bos_token + message.role + ": " + message.content + "\n" -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- "assistant:" -}}{%- endif -%}"""


@dataclass(frozen=True)
class TestKit:
    """The shape of a client kit."""

    __test__ = False

    tokenizer_folder: Path
    codec: Codec
    name: str = MODEL
    max_model_len: int = 512
    eos_token_ids: tuple[int, ...] = (EOS_ID,)
    ends_file: Path | None = None


@dataclass(frozen=True, repr=False)
class Proxied:
    """A running pair. `say` makes the node answer with texts, which only the test can do: it
    holds the codec."""

    node: FakeNode
    kit: TestKit
    text_side: TextSide
    port: int

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def cipher(self, text: str) -> tuple[int, ...]:
        ids = self.text_side._backend.encode(text, add_special_tokens=False).ids
        return self.kit.codec.encode(ids)

    def say(self, *texts: str) -> None:
        self.node.rule = saying(*map(self.cipher, texts))

    def heard(self, place: int = -1) -> tuple[int, ...]:
        """A prompt that the node got, in plain ids."""
        return self.kit.codec.decode(self.node.requests[place].token_ids)


def tokenizer_folder(stories: Path, folder: Path) -> Path:
    """The real tokenizer of stories260K, with a chat template, which it lacks."""
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(stories / name, folder / name)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    return folder


def codec_of(vocab_size: int = 512) -> Codec:
    return Codec(MasterKey(b"a key for tests only, 32 bytes.."), "digest", "llama", vocab_size)


@asynccontextmanager
async def serving(app: web.Application) -> AsyncIterator[int]:
    """Serve an application on a free port of 127.0.0.1; yield the port."""
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.2)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield int(runner.addresses[0][1])
    finally:
        await runner.cleanup()


@asynccontextmanager
async def proxied(
    text_side: TextSide,
    kit: TestKit,
    identity_folder: Path,
    *,
    settings: ProxySettings | None = None,
    timeouts: NodeTimeouts | None = None,
) -> AsyncIterator[Proxied]:
    node = FakeNode(kit.codec.vocab_size, kit.codec.fingerprint)
    async with running(node, identity_folder):
        address = pinned_node(node.url, node.pin)
        async with NodeClient(address, kit.codec, kit.eos_token_ids, timeouts) as client:
            app = create_app(kit, text_side, client, settings or ProxySettings())
            async with serving(app) as port:
                yield Proxied(node, kit, text_side, port)


async def eventually(holds: Callable[[], bool], within_s: float = 3.0) -> None:
    """Wait until `holds`; fail when it does not in time."""
    async with asyncio.timeout(within_s):
        while not holds():
            await asyncio.sleep(0.01)
