"""Running a proxy from the node's card to the last answer.

Order: ask the node what it serves, find the kit that belongs to it, load the tokenizer, listen.
On SIGTERM or SIGINT the listener closes and answers in flight have `grace_s` to finish.

Invariant: nothing listens before the node is known to serve what our key encrypted.
"""

from __future__ import annotations

import asyncio
import gc
import signal
from collections.abc import Callable
from dataclasses import dataclass, field

from aiohttp import web

from veilrun.errors import RefusedError, UsageError
from veilrun.serve.kit import Kit
from veilrun.serve.node_address import NodeAddress
from veilrun.serve.node_client import NodeClient, NodeTimeouts, fetch_card
from veilrun.serve.proxy import ProxySettings, create_app
from veilrun.serve.text import load_text_side
from veilrun.transport.tls import is_loopback


@dataclass(frozen=True, slots=True)
class Listener:
    """Where a proxy listens.

    port: 0 takes a free one. api_key: what applications must send; None lets everyone in who
    reaches the port. grace_s: how long answers may go on after a signal to stop.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    api_key: str | None = field(default=None, repr=False)
    grace_s: float = 10.0


@dataclass(frozen=True, slots=True)
class Ready:
    """What an application needs to know. url: the base URL for OpenAI clients."""

    url: str
    model: str
    fingerprint: str


def verify_listener(listener: Listener) -> None:
    """Raise RefusedError where strangers could use the proxy: it reads and writes plain text."""
    if not is_loopback(listener.host) and listener.api_key is None:
        raise RefusedError(
            f"{listener.host} can be reached from other machines: set an API key "
            "(--api-key-file or VEILRUN_API_KEY), or listen on 127.0.0.1"
        )


async def run_proxy(
    open_kit: Callable[[str], Kit],
    address: NodeAddress,
    listener: Listener,
    on_ready: Callable[[Ready], None],
    timeouts: NodeTimeouts | None = None,
) -> None:
    """Serve until a signal. `open_kit` finds the client kit for a fingerprint.

    Raises:
        RefusedError: other machines could use the proxy without a key.
        PeerError, TransportError: the node cannot be used.
        UsageError: the address cannot be listened on, or there is no tokenizer.
    """
    verify_listener(listener)
    card = await fetch_card(address, timeouts)
    kit = open_kit(card.manifest.fingerprint)
    text_side = load_text_side(kit.tokenizer_folder, kit.name)
    # The libraries' half a million objects live as long as we do; a collection that walks
    # through them would stop all streams for a third of a second.
    gc.collect()
    gc.freeze()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for one in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(one, stop.set)
    async with NodeClient(address, kit.codec, kit.eos_token_ids, timeouts) as node:
        await node.card()
        settings = ProxySettings(host=listener.host, api_key=listener.api_key)
        runner = web.AppRunner(
            create_app(kit, text_side, node, settings),
            access_log=None,
            handler_cancellation=True,  # an application that leaves stops the node
            shutdown_timeout=listener.grace_s,
        )
        await runner.setup()
        try:
            port = await _listen(runner, listener)
            on_ready(Ready(_base_url(listener.host, port), kit.name, kit.codec.fingerprint))
            await stop.wait()
        finally:
            await runner.cleanup()


async def _listen(runner: web.AppRunner, listener: Listener) -> int:
    try:
        await web.TCPSite(runner, listener.host, listener.port).start()
    except OSError as error:
        raise UsageError(
            f"cannot listen on {listener.host} port {listener.port}: {error.strerror or error}"
        ) from error
    return int(runner.addresses[0][1])


def _base_url(host: str, port: int) -> str:
    """A wildcard address is no address to call: from this machine it is loopback."""
    host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    return f"http://[{host}]:{port}/v1" if ":" in host else f"http://{host}:{port}/v1"
