"""The node's HTTP surface: an allow-list of paths, tokens in and tokens out.

POST /inference/v1/generate        one prompt, an answer in one piece or as server-sent events
POST /inference/v1/abort_requests  stop requests by the id their answers carry
GET  /health                       200 while the engine can answer, else 503; needs no key
GET  /v1/models                    the node's card
GET  /metrics                      totals for Prometheus
GET  /veilrun/v1/attestation       evidence of this machine, where it has an attester

Anything else is 404. Errors are `{"error": {"message", "type", "param", "code"}}`.

Covered: ids and lengths that would stop the engine are refused before it; the queue is bounded
(429); bodies are bounded in size and time; a client that leaves stops its generation. Neither
bodies nor ids are logged.
Not covered: a client with the key that fills its share of the queue.

Invariant: whatever a client sends, the other clients' answers stay what they are.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import replace

from aiohttp import web

from veilrun.errors import BusyError, DecodeError, PeerError, TransportError, UsageError
from veilrun.node.attestation import AttestationPath
from veilrun.node.capacity import Capacity
from veilrun.node.engine import Engine, admit
from veilrun.node.exchange import ID_PREFIX, ClientGone, Exchange, Sink, Stream, WholeAnswer
from veilrun.node.front import Front, Refusal, ServerLimits
from veilrun.node.metrics import Metrics, Outcome
from veilrun.wire.generate import (
    ABORT_PATH,
    GENERATE_PATH,
    HEALTH_PATH,
    METRICS_PATH,
    MODELS_PATH,
    GenerateRequest,
    decode_aborts,
    decode_request,
)
from veilrun.wire.manifest import Manifest, NodeCard, encode_card

__all__ = ["NodeServer", "ServerLimits"]

_log = logging.getLogger(__name__)

_BUSY_S = 1.0
_UNREADY_S = 2.0


class NodeServer:
    """The routes over a started engine. `application()` is what aiohttp runs."""

    def __init__(
        self,
        engine: Engine,
        manifest: Manifest,
        model: str,
        limits: ServerLimits | None = None,
        api_key: str | None = None,
        attestation: AttestationPath | None = None,
    ) -> None:
        """`model` is the name the node serves under; with `api_key`, clients must send it."""
        self._engine = engine
        self._limits = limits or ServerLimits()
        max_n = min(engine.limits.max_n, self._limits.max_running)
        vocab_size = min(engine.limits.vocab_size, manifest.vocab_size)
        self._admitted = replace(engine.limits, max_n=max_n, vocab_size=vocab_size)
        self._card = NodeCard(model, engine.name, engine.limits.max_model_len, manifest)
        self._front = Front(self._limits, api_key)
        self._attestation = attestation
        self._running = Capacity(self._limits.max_running)
        self._exchanges: dict[str, set[Exchange]] = {}
        self._draining = False
        self._metrics = Metrics()

    def application(self) -> web.Application:
        """The aiohttp application; run it with `handler_cancellation=True`."""
        app = self._front.application()
        app.router.add_post(GENERATE_PATH, self._generate)
        app.router.add_post(ABORT_PATH, self._abort)
        app.router.add_get(HEALTH_PATH, self._health, allow_head=False)
        app.router.add_get(MODELS_PATH, self._models, allow_head=False)
        app.router.add_get(METRICS_PATH, self._show_metrics, allow_head=False)
        if self._attestation is not None:
            self._attestation.add_to(app)
        return app

    async def drain(self, grace_s: float) -> bool:
        """Take no more requests and wait for those in flight; False if `grace_s` was too short."""
        self._draining = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                while self._exchanges:
                    await asyncio.sleep(0.02)
        return not self._exchanges

    # --- routes -------------------------------------------------------------------------

    async def _generate(self, http: web.Request) -> web.StreamResponse:
        begun_s = time.monotonic()
        outcome: Outcome = "failed"
        n_in = n_out = 0
        try:
            self._check_open()
            request = self._admit(await self._front.read(http))
            n_in = len(request.token_ids)
            with self._tracked(request) as exchange:
                try:
                    response = await self._answer(http, exchange)
                finally:
                    n_out = exchange.n_out
            outcome = exchange.outcome
            return response
        except Refusal as refusal:
            outcome = refusal.outcome
            raise
        except (asyncio.CancelledError, ConnectionError):
            outcome = "disconnected"
            raise
        finally:
            seconds = time.monotonic() - begun_s
            self._metrics.note(outcome, seconds=seconds, n_in=n_in, n_out=n_out)
            _log.info(
                "request %s after %.2f s; answers running: %d, requests queued: %d",
                outcome, seconds, self._running.n_on_loan, self._running.n_waiting,
            )  # fmt: skip

    async def _abort(self, http: web.Request) -> web.Response:
        try:
            request_ids = decode_aborts(await self._front.read(http))
        except DecodeError as error:
            raise Refusal(400, "invalid_request", str(error), param=error.field) from error
        for request_id in request_ids:
            for exchange in self._exchanges.get(request_id, ()):
                exchange.abort()
        return web.Response()

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response(status=200 if self._engine.ready and not self._draining else 503)

    async def _models(self, _: web.Request) -> web.Response:
        return web.Response(body=encode_card(self._card), content_type="application/json")

    async def _show_metrics(self, _: web.Request) -> web.Response:
        text = self._metrics.render(
            n_running=self._running.n_on_loan,
            n_queued=self._running.n_waiting,
            ready=self._engine.ready,
        )
        return web.Response(text=text, content_type="text/plain")

    # --- one request, step by step ------------------------------------------------------

    def _check_open(self) -> None:
        if self._draining or not self._engine.ready:
            raise Refusal(
                503, "engine_unavailable", "the node is starting, restarting or shutting down",
                outcome="unavailable", retry_after_s=_UNREADY_S,
            )  # fmt: skip

    def _admit(self, body: bytes) -> GenerateRequest:
        try:
            request = decode_request(body)
            if request.model not in (None, self._card.model):
                raise Refusal(
                    404, "model_not_found", "this node serves another model", param="model"
                )
            admit(request, self._admitted)
        except DecodeError as error:
            raise Refusal(400, "invalid_request", str(error), param=error.field) from error
        except UsageError as error:
            raise Refusal(400, "invalid_request", str(error)) from error
        return request

    @contextmanager
    def _tracked(self, request: GenerateRequest) -> Iterator[Exchange]:
        """Make the request known to `abort` and `drain` while it lasts."""
        exchange = Exchange(request, ID_PREFIX + (request.request_id or uuid.uuid4().hex))
        # Two clients may choose the same id; aborting it then ends both.
        same_id = self._exchanges.setdefault(exchange.answer_id, set())
        same_id.add(exchange)
        try:
            yield exchange
        finally:
            same_id.discard(exchange)
            if not same_id:
                self._exchanges.pop(exchange.answer_id, None)

    @asynccontextmanager
    async def _turn(self, n_answers: int) -> AsyncIterator[None]:
        """Wait until there is room for the answers, unless too many wait already."""
        waits = not self._running.fits_now(n_answers)
        if waits and self._running.n_waiting >= self._limits.max_queued:
            raise Refusal(
                429, "queue_full", "the node's queue is full",
                outcome="busy", retry_after_s=_BUSY_S,
            )  # fmt: skip
        async with self._running.hold(n_answers):
            yield

    async def _answer(self, http: web.Request, exchange: Exchange) -> web.StreamResponse:
        request = exchange.request
        stream = Stream(http, exchange) if request.stream else None
        sink: Sink = stream or WholeAnswer(exchange)
        try:
            async with self._turn(request.sampling_params.n):
                async with aclosing(self._engine.generate(request)) as choices:
                    async for choice in choices:
                        exchange.note(choice)
                        await sink.write(choice)
        except asyncio.CancelledError:
            if not exchange.absorb_abort():
                raise  # the client has left
        except (Refusal, ClientGone):
            raise
        except Exception as error:  # whatever it is, a stream that has begun must still end
            refusal = _of_engine(error)
            if stream is None or not stream.has_begun:
                raise refusal from error
            exchange.settle()
            exchange.fail()
            return await stream.fail(refusal.body)
        exchange.settle()
        for choice in exchange.rest():
            await sink.write(choice)
        return await sink.finish()


def _of_engine(error: Exception) -> Refusal:
    """How the client learns of an error in the engine."""
    if isinstance(error, BusyError):
        return Refusal(
            503, "engine_unavailable", "the engine cannot answer now",
            outcome="unavailable", retry_after_s=error.retry_after_s,
        )  # fmt: skip
    if isinstance(error, UsageError):
        return Refusal(400, "invalid_request", str(error))
    # Its kind only: what it says may quote the request.
    _log.error("the engine failed with %s", type(error).__name__)
    status = 502 if isinstance(error, PeerError | TransportError) else 500
    return Refusal(status, "engine_failed", "the engine failed", outcome="failed")
