"""The HTTP surface of a node that serves the middle of a model: an allow-list of paths.

POST /inference/v1/middle   rows of a session in, its final states out; or the session's end
GET  /health                200 while the engine can answer, else 503; needs no key
GET  /v1/models             the node's card
GET  /metrics               totals for Prometheus; tokens in are rows, tokens out are states
GET  /veilrun/v1/attestation  evidence of this machine, where it has an attester

Covered: frames that do not parse or have other sizes than the model; bodies bounded in size and
time; a bounded queue (429); sessions that nobody ends. Neither bodies nor names are logged.
Not covered: a client with the key that takes all sessions.

Invariant: whatever a client sends, the other clients' answers stay what they are.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Final, Protocol

from aiohttp import web

from veilrun.errors import BusyError, DecodeError, UsageError
from veilrun.node.attestation import AttestationPath
from veilrun.node.front import Front, Refusal, ServerLimits
from veilrun.node.metrics import Metrics, Outcome
from veilrun.wire.generate import HEALTH_PATH, METRICS_PATH, MODELS_PATH
from veilrun.wire.manifest import Manifest, NodeCard, encode_card
from veilrun.wire.middle import (
    FRAME_TYPE,
    MIDDLE_PATH,
    SESSION_LOST,
    End,
    Extend,
    Rows,
    decode_request,
    encode_states,
)

_BUSY_S: Final = 1.0
_UNREADY_S: Final = 2.0
_POLL_S: Final = 0.02


class SessionLost(UsageError):
    """The session is not here, or has another length; its client can send it again."""


class Middle(Protocol):
    """What serves the middle of one encrypted checkpoint.

    hidden: entries of a row. max_model_len: rows of a session at most.
    """

    name: str
    hidden: int
    max_model_len: int

    @property
    def ready(self) -> bool: ...
    @property
    def n_sessions(self) -> int: ...
    async def start(self) -> None: ...
    async def stop(self) -> None: ...
    async def extend(self, request: Extend) -> Rows:
        """Add rows; raises SessionLost, UsageError or BusyError."""

    async def end(self, session: str) -> None: ...


class MiddleServer:
    """The routes over a started engine. `application()` is what aiohttp runs."""

    def __init__(
        self,
        engine: Middle,
        manifest: Manifest,
        model: str,
        limits: ServerLimits | None = None,
        api_key: str | None = None,
        attestation: AttestationPath | None = None,
    ) -> None:
        """`model` is the name the node serves under; with `api_key`, clients must send it."""
        self._engine = engine
        self._limits = limits or ServerLimits()
        self._front = Front(self._limits, api_key)
        self._attestation = attestation
        self._card = NodeCard(model, engine.name, engine.max_model_len, manifest)
        self._metrics = Metrics()
        self._n_open = 0
        self._draining = False

    def application(self) -> web.Application:
        """The aiohttp application; run it with `handler_cancellation=True`."""
        app = self._front.application()
        app.router.add_post(MIDDLE_PATH, self._middle)
        app.router.add_get(HEALTH_PATH, self._health, allow_head=False)
        app.router.add_get(MODELS_PATH, self._models, allow_head=False)
        app.router.add_get(METRICS_PATH, self._show_metrics, allow_head=False)
        if self._attestation is not None:
            self._attestation.add_to(app)
        return app

    async def drain(self, grace_s: float) -> bool:
        """Begin no more sessions and wait for the others; False if `grace_s` was too short."""
        self._draining = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                while self._engine.n_sessions or self._n_open:
                    await asyncio.sleep(_POLL_S)
        return not self._engine.n_sessions

    async def _middle(self, http: web.Request) -> web.Response:
        begun_s = time.monotonic()
        outcome: Outcome = "failed"
        n_in = n_out = 0
        self._n_open += 1
        try:
            self._check_open()
            request = self._decode(await self._front.read(http))
            if isinstance(request, Extend):
                n_in, n_out = len(request.rows), request.n_states
                body = encode_states(await self._extend(request))
            else:
                await self._engine.end(request.session)
                body = b""
            outcome = "answered"
            return web.Response(body=body, content_type=FRAME_TYPE)
        except Refusal as refusal:
            outcome = refusal.outcome
            raise
        except (asyncio.CancelledError, ConnectionError):
            outcome = "disconnected"
            raise
        finally:
            self._n_open -= 1
            seconds = time.monotonic() - begun_s
            n_out = n_out if outcome == "answered" else 0
            self._metrics.note(outcome, seconds=seconds, n_in=n_in, n_out=n_out)

    def _check_open(self) -> None:
        if not self._engine.ready:
            raise _unavailable()
        if self._n_open > self._limits.max_running + self._limits.max_queued:
            raise Refusal(
                429, "queue_full", "the node's queue is full",
                outcome="busy", retry_after_s=_BUSY_S,
            )  # fmt: skip

    def _decode(self, body: bytes) -> Extend | End:
        try:
            return decode_request(
                body, hidden=self._engine.hidden, max_bytes=self._limits.max_body_bytes
            )
        except DecodeError as error:
            raise Refusal(400, "invalid_request", str(error), param=error.field) from error

    async def _extend(self, request: Extend) -> Rows:
        if self._draining and not request.position:
            raise _unavailable()
        try:
            return await self._engine.extend(request)
        except SessionLost as error:
            raise Refusal(SESSION_LOST, "session_lost", str(error)) from error
        except UsageError as error:
            raise Refusal(400, "invalid_request", str(error)) from error
        except BusyError as error:
            raise Refusal(
                429, "sessions_full", str(error),
                outcome="busy", retry_after_s=error.retry_after_s,
            ) from error  # fmt: skip

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response(status=200 if self._engine.ready and not self._draining else 503)

    async def _models(self, _: web.Request) -> web.Response:
        return web.Response(body=encode_card(self._card), content_type="application/json")

    async def _show_metrics(self, _: web.Request) -> web.Response:
        text = self._metrics.render(
            n_running=self._engine.n_sessions, n_queued=self._n_open, ready=self._engine.ready
        )
        return web.Response(text=text, content_type="text/plain")


def _unavailable() -> Refusal:
    return Refusal(
        503, "engine_unavailable", "the node is starting, restarting or shutting down",
        outcome="unavailable", retry_after_s=_UNREADY_S,
    )  # fmt: skip
