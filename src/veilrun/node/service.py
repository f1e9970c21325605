"""Running a node from first byte to last: weights, engine, listener, signals, graceful end.

Order at the end: the listener closes, new requests on open connections get 503, those in
flight have `grace_s` to finish, the engine stops and so ends the rest with "abort". A second
signal skips the wait.

Invariant: the engine is stopped on every way out; its thread or child would outlive us.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import signal
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from aiohttp import web

from veilrun.attest.live.machine import Attested
from veilrun.errors import CheckpointError, UsageError
from veilrun.node.attestation import AttestationPath
from veilrun.node.engine import Engine
from veilrun.node.folder import verify_weights
from veilrun.node.middle_server import Middle, MiddleServer
from veilrun.node.server import NodeServer, ServerLimits
from veilrun.wire.manifest import Manifest

_log = logging.getLogger(__name__)

_LAST_WORDS_S: Final = 5.0
"""For sending what the engine's end leaves to send."""

_IDLE_S: Final = 75.0
"""How long a connection may stay without a whole request: aiohttp alone would wait an hour."""


@dataclass(frozen=True, slots=True)
class Listener:
    """Where a node listens.

    port: 0 takes a free one. tls: None is plain HTTP; who allows that is the caller's business.
    api_key: what clients must send; None lets everyone in who reaches the port.
    grace_s: how long requests in flight may go on after a signal to stop.
    attested: whose evidence clients may ask for, and what it is about; the weights root is that
    of the manifest, and the weights are held against it before anything is served.
    """

    host: str
    port: int
    tls: ssl.SSLContext | None
    api_key: str | None = None
    grace_s: float = 30.0
    attested: Attested | None = None

    def attestation(self) -> AttestationPath | None:
        """The path to the evidence, for one server."""
        return None if self.attested is None else AttestationPath(self.attested)


class StopSignals:
    """What was asked of the process: go on, stop gracefully, stop now."""

    def __init__(self) -> None:
        self.graceful = asyncio.Event()
        self.now = asyncio.Event()

    def ask(self) -> None:
        """The first call asks for a graceful stop, the second for an immediate one."""
        if self.graceful.is_set():
            self.now.set()
        self.graceful.set()

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Let SIGTERM and SIGINT call `ask` while the block lasts."""
        loop = asyncio.get_running_loop()
        wanted = (signal.SIGTERM, signal.SIGINT)
        for one in wanted:
            loop.add_signal_handler(one, self.ask)
        try:
            yield
        finally:
            for one in wanted:
                loop.remove_signal_handler(one)


async def run_node(
    engine: Engine,
    folder: Path,
    manifest: Manifest,
    model: str,
    listener: Listener,
    limits: ServerLimits,
    on_ready: Callable[[int], None],
) -> None:
    """Serve `folder` until a signal. `on_ready` gets the port once the node can answer.

    Raises:
        CheckpointError: the manifest does not belong to these weights.
        UsageError: the address cannot be listened on, or the engine cannot run the model.
    """

    def make_server() -> Server:
        if manifest.vocab_size > engine.limits.vocab_size:
            raise CheckpointError(
                f"the manifest names {manifest.vocab_size} ids, the weights have "
                f"{engine.limits.vocab_size}"
            )
        return NodeServer(engine, manifest, model, limits, listener.api_key, listener.attestation())

    await _run(engine, folder, manifest, make_server, listener, on_ready)


async def run_middle(
    engine: Middle,
    folder: Path,
    manifest: Manifest,
    model: str,
    listener: Listener,
    limits: ServerLimits,
    on_ready: Callable[[int], None],
) -> None:
    """Serve a folder without embedding and head until a signal; see `run_node`."""

    def make_server() -> Server:
        return MiddleServer(
            engine, manifest, model, limits, listener.api_key, listener.attestation()
        )

    await _run(engine, folder, manifest, make_server, listener, on_ready)


class Startable(Protocol):
    """What every kind of engine does first and last."""

    async def start(self) -> None: ...
    async def stop(self) -> None: ...


class Server(Protocol):
    """An HTTP surface over a started engine."""

    def application(self) -> web.Application: ...
    async def drain(self, grace_s: float) -> bool: ...


async def _run(
    engine: Startable,
    folder: Path,
    manifest: Manifest,
    make_server: Callable[[], Server],
    listener: Listener,
    on_ready: Callable[[int], None],
) -> None:
    signals = StopSignals()
    with signals.installed():
        try:
            if not await _started(_start(engine, folder, manifest), signals):
                return
            server = make_server()
            async with listening(server, listener) as (runner, port):
                on_ready(port)
                await signals.graceful.wait()
                await _end(engine, server, runner, listener.grace_s, signals)
        finally:
            await engine.stop()


async def _start(engine: Startable, folder: Path, manifest: Manifest) -> None:
    """Verify the weights, then start the engine with them."""
    _log.info("verifying the weights")
    abandoned = threading.Event()
    try:
        await asyncio.to_thread(verify_weights, folder, manifest, abandoned.is_set)
    finally:
        abandoned.set()  # after a signal the thread would read on, and the process wait for it
    await engine.start()


async def _started(work: Coroutine[None, None, None], signals: StopSignals) -> bool:
    """Do the work; False if a signal came first."""
    start = asyncio.create_task(work)
    stop = asyncio.create_task(signals.graceful.wait())
    try:
        await asyncio.wait({start, stop}, return_when=asyncio.FIRST_COMPLETED)
        if not start.done():
            return False
        start.result()
        return True
    finally:
        for task in (start, stop):
            task.cancel()
        await asyncio.gather(start, stop, return_exceptions=True)


@asynccontextmanager
async def listening(server: Server, listener: Listener) -> AsyncIterator[tuple[web.AppRunner, int]]:
    """Listen while the block lasts; yields the runner and the port."""
    runner = web.AppRunner(
        server.application(),
        access_log=None,  # its lines hold addresses and paths
        logger=_discreet_log(),
        keepalive_timeout=_IDLE_S,
        handler_cancellation=True,  # a client that leaves cancels its handler
        shutdown_timeout=_LAST_WORDS_S,
    )
    await runner.setup()
    try:
        site = web.TCPSite(runner, listener.host, listener.port, ssl_context=listener.tls)
        try:
            await site.start()
        except OSError as error:
            reason = "in use" if error.errno == errno.EADDRINUSE else error.strerror or error
            raise UsageError(
                f"cannot listen on {listener.host}:{listener.port}: {reason}"
            ) from error
        yield runner, runner.addresses[0][1]
    finally:
        await runner.cleanup()


def _discreet_log() -> logging.Logger:
    """For aiohttp, which quotes what it cannot parse: only the kind of a fault is kept."""

    def tell_the_kind(record: logging.LogRecord) -> bool:
        kind = record.exc_info[0] if record.exc_info else None
        record.msg = f"HTTP: {kind.__name__ if kind else 'see the client'}"
        record.args, record.exc_info = None, None
        return True

    logger = logging.getLogger("veilrun.node.http")
    logger.filters = [tell_the_kind]
    return logger


async def _end(
    engine: Startable, server: Server, runner: web.AppRunner, grace_s: float, signals: StopSignals
) -> None:
    _log.info("stopping: no new requests")
    for site in list(runner.sites):
        await site.stop()
    drain = asyncio.create_task(server.drain(grace_s))
    hurry = asyncio.create_task(signals.now.wait())
    await asyncio.wait({drain, hurry}, return_when=asyncio.FIRST_COMPLETED)
    if not drain.done() or not drain.result():
        _log.warning("stopping: the requests still running are aborted")
    for task in (drain, hurry):
        task.cancel()
    await asyncio.gather(drain, hurry, return_exceptions=True)
    await engine.stop()
