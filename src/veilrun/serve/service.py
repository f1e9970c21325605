"""Running a proxy from the node's card to the last answer.

Order: make sure that the node serves the checkpoint of our kit, load the tokenizer, listen. The
kit is the caller's choice: a node that could choose it could pass one model off as another.
On SIGTERM or SIGINT the listener closes and answers in flight have `grace_s` to finish.

Invariant: nothing listens before the node is known to serve what our key encrypted, and off
loopback nothing listens without TLS and an API key.
"""

from __future__ import annotations

import asyncio
import gc
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from aiohttp import web

from veilrun.errors import RefusedError, UsageError
from veilrun.serve.attested import Requirement
from veilrun.serve.ends import load_ends
from veilrun.serve.kit import Kit
from veilrun.serve.middle_client import MiddleClient
from veilrun.serve.node_address import NodeAddress
from veilrun.serve.node_client import NodeClient, NodeTimeouts
from veilrun.serve.proxy import ProxySettings, create_app
from veilrun.serve.text import load_text_side
from veilrun.transport.tls import Identity, ensure_identity, is_loopback, server_context

_KEEPALIVE_S: Final = 75.0
"""How long an application's idle connection stays open; aiohttp's own default is an hour."""

_WILDCARDS: Final = ("", "0.0.0.0", "::")  # noqa: S104 - compared, not bound


@dataclass(frozen=True, slots=True)
class Listener:
    """Where a proxy listens: plain HTTP on loopback, HTTPS everywhere else.

    identity_folder: of the TLS certificate and key, made once; not looked at on loopback.
    port: 0 takes a free one. api_key: what applications must send; None lets everyone in who
    reaches the port. grace_s: how long answers may go on after a signal to stop.
    """

    identity_folder: Path
    host: str = "127.0.0.1"
    port: int = 8080
    api_key: str | None = field(default=None, repr=False)
    grace_s: float = 10.0


@dataclass(frozen=True, slots=True)
class Ready:
    """What an application needs to know. url: the base URL for OpenAI clients. identity: the
    certificate to trust there; None over plain HTTP.
    """

    url: str
    model: str
    fingerprint: str
    identity: Identity | None


def verify_listener(listener: Listener) -> None:
    """Raise RefusedError where strangers could use the proxy: it reads and writes plain text."""
    if not is_loopback(listener.host) and listener.api_key is None:
        raise RefusedError(
            f"{listener.host} can be reached from other machines: set an API key "
            "(--api-key-file or VEILRUN_API_KEY), or listen on 127.0.0.1"
        )


async def run_proxy(
    kit: Kit,
    address: NodeAddress,
    listener: Listener,
    on_ready: Callable[[Ready], None],
    timeouts: NodeTimeouts | None = None,
    requirement: Requirement | None = None,
) -> None:
    """Serve until a signal.

    Raises:
        RefusedError: other machines could use the proxy without a key.
        VerificationError: the node serves another checkpoint than the kit's, or its machine is
            not what is required.
        PeerError, TransportError: the node cannot be used.
        UsageError: the address cannot be listened on, or there is no tokenizer.
    """
    verify_listener(listener)
    identity = _identity(listener)
    async with _client(kit, address, timeouts, requirement) as node:
        await node.card()
        text_side = load_text_side(kit.tokenizer_folder, kit.name)
        # The libraries' half a million objects live as long as we do; a collection that walks
        # through them would stop all streams for a third of a second.
        gc.collect()
        gc.freeze()
        stop = asyncio.Event()
        for one in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(one, stop.set)
        settings = ProxySettings(host=listener.host, api_key=listener.api_key)
        runner = web.AppRunner(
            create_app(kit, text_side, node, settings),
            access_log=None,
            handler_cancellation=True,  # an application that leaves stops the node
            shutdown_timeout=listener.grace_s,
            keepalive_timeout=_KEEPALIVE_S,
        )
        await runner.setup()
        try:
            port = await _listen(runner, listener, identity)
            url = _base_url("https" if identity else "http", listener.host, port)
            on_ready(Ready(url, kit.name, kit.codec.fingerprint, identity))
            await stop.wait()
        finally:
            await runner.cleanup()


def _client(
    kit: Kit,
    address: NodeAddress,
    timeouts: NodeTimeouts | None,
    requirement: Requirement | None,
) -> NodeClient | MiddleClient:
    """The way to the node; a kit with embedding and head computes with them itself."""
    if kit.ends_file is None:
        return NodeClient(address, kit.codec, kit.eos_token_ids, timeouts, requirement)
    ends = load_ends(kit.ends_file, kit.codec)
    return MiddleClient(address, kit.codec, kit.eos_token_ids, ends, timeouts, requirement)


def _identity(listener: Listener) -> Identity | None:
    """What TLS is spoken with; None on loopback, which is plain HTTP. Applications that do not
    pin compare the certificate's names, so it gets the one that others call this machine by.
    """
    if is_loopback(listener.host):
        return None
    name = socket.gethostname() if listener.host in _WILDCARDS else listener.host
    return ensure_identity(listener.identity_folder, [name])


async def _listen(runner: web.AppRunner, listener: Listener, identity: Identity | None) -> int:
    context = server_context(identity) if identity else None
    try:
        await web.TCPSite(runner, listener.host, listener.port, ssl_context=context).start()
    except OSError as error:
        raise UsageError(
            f"cannot listen on {listener.host} port {listener.port}: {error.strerror or error}"
        ) from error
    return int(runner.addresses[0][1])


def _base_url(scheme: str, host: str, port: int) -> str:
    """A wildcard address is no address to call: from this machine it is loopback."""
    if host in _WILDCARDS:
        host = "::1" if host == "::" else "127.0.0.1"
    return f"{scheme}://[{host}]:{port}/v1" if ":" in host else f"{scheme}://{host}:{port}/v1"
