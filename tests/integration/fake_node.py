"""A scriptable node: speaks the node protocol over real TLS, well or badly.

What it knows is what any node knows: cipher ids. Good answers follow a rule on those alone.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from aiohttp import web

from veilrun.transport.tls import ensure_identity, server_context
from veilrun.wire.generate import (
    GENERATE_PATH,
    MODELS_PATH,
    Choice,
    GenerateRequest,
    GenerateResponse,
    PositionLogprobs,
    TokenLogprob,
    decode_request,
    encode_response,
)
from veilrun.wire.manifest import Manifest, NodeCard, encode_card

Rule = Callable[[GenerateRequest, int], list[int]]


def backwards(request: GenerateRequest, index: int) -> list[int]:
    """The prompt from its end to its begin, over and over; answer `index` skips that many."""
    turned = list(request.token_ids[::-1])
    n_turns = request.sampling_params.max_tokens // len(turned) + 2
    return (turned * n_turns)[index:]


def saying(*answers: tuple[int, ...]) -> Rule:
    """Fixed cipher ids, then the end id that the request names."""

    def rule(request: GenerateRequest, index: int) -> list[int]:
        return [*answers[index % len(answers)], *request.sampling_params.stop_token_ids[:1]]

    return rule


@dataclass
class FakeNode:
    """rule: the answers. tokens_per_chunk, pause_s: how they are streamed. farewell_s: how long
    the end of a stream comes after its last token.

    fault: the way in which it misbehaves; see `_Faults`. None: not at all.
    """

    vocab_size: int
    fingerprint: str
    max_model_len: int = 512
    rule: Rule = backwards
    tokens_per_chunk: int = 1
    pause_s: float = 0.0
    farewell_s: float = 0.0
    fault: str | None = None
    requests: list[GenerateRequest] = field(default_factory=list)
    connections: set[object] = field(default_factory=set)
    n_card_requests: int = 0
    n_left_early: int = 0
    n_running: int = 0
    n_running_at_most: int = 0
    url: str = ""
    pin: str = ""

    def card(self) -> NodeCard:
        manifest = Manifest("ee", self.fingerprint, self.vocab_size, "ab" * 32)
        return NodeCard("model", "fake", self.max_model_len, manifest)

    # --- the HTTP surface ----------------------------------------------------------------

    async def models(self, _: web.Request) -> web.StreamResponse:
        self.n_card_requests += 1
        match self.fault:
            case "other checkpoint":
                other = replace(self.card().manifest, fingerprint="cd" * 16)
                return json_response(encode_card(replace(self.card(), manifest=other)))
            case "other vocabulary":
                other = replace(self.card().manifest, vocab_size=self.vocab_size + 1)
                return json_response(encode_card(replace(self.card(), manifest=other)))
            case "garbage card":
                return json_response(b'{"data": "all of it"}')
            case "endless card":
                return json_response(b"[" + b" " * 2**20)
        return json_response(encode_card(self.card()))

    async def generate(self, http: web.Request) -> web.StreamResponse:
        request = decode_request(await http.read())
        self.requests.append(request)
        assert http.transport is not None
        self.connections.add(http.transport.get_extra_info("peername"))
        self.n_running += 1
        self.n_running_at_most = max(self.n_running_at_most, self.n_running)
        try:
            refusal = self._refusal(http)
            if refusal is not None:
                return refusal
            if request.stream:
                return await self._stream(http, request)
            await asyncio.sleep(self.pause_s)
            return json_response(self._damaged(encode_response(self._whole(request))))
        except (asyncio.CancelledError, ConnectionError):
            self.n_left_early += 1
            raise
        finally:
            self.n_running -= 1

    def _refusal(self, http: web.Request) -> web.Response | None:
        match self.fault:
            case "busy":
                return web.Response(status=429, headers={"Retry-After": "7"})
            case "server error":
                body = {"error": {"message": "engine \x1b[31mgone"}}
                return web.json_response(body, status=500)
            case "refuses":
                body = {"error": {"message": "top_k is \x1b[31mtoo odd", "param": "top_k"}}
                return web.json_response(body, status=400)
            case "dies while refusing":
                assert http.transport is not None
                http.transport.write(b"HTTP/1.1 500 No\r\nContent-Length: 99\r\n\r\n")
                http.transport.close()
                return web.Response()
            case "starting":
                return web.Response(status=503)
            case "redirect":
                return web.Response(status=307, headers={"Location": "http://127.0.0.1:9/"})
            case "drops the next":  # as when an idle connection was closed meanwhile
                self.fault = None
                assert http.transport is not None
                http.transport.abort()
                return web.Response()
            case "compressed":
                return web.Response(body=b"x", headers={"Content-Encoding": "gzip"})
        return None

    def _chunks(self, request: GenerateRequest) -> list[Choice]:
        """The chunks of all answers, one answer after the other."""
        return [
            chunk
            for index in range(request.sampling_params.n)
            for chunk in self._chunks_of(request, index)
        ]

    def _chunks_of(self, request: GenerateRequest, index: int) -> list[Choice]:
        params = request.sampling_params
        ids = self.rule(request, index)[: params.max_tokens]
        ends = [place for place, one in enumerate(ids) if one in params.stop_token_ids]
        if ends:
            ids = ids[: ends[0] + 1]
        size = self.tokens_per_chunk if request.stream else len(ids)
        parts = [tuple(ids[start : start + size]) for start in range(0, len(ids), size)]
        chunks = [
            Choice(index, part, logprobs=logprobs_of(part, params.logprobs)) for part in parts
        ]
        reason = "stop" if ends else "length"
        chunks[-1] = replace(
            chunks[-1], finish_reason=reason, stop_reason=ids[-1] if ends else None
        )
        return [self._spoiled(chunk, place) for place, chunk in enumerate(chunks)]

    def _whole(self, request: GenerateRequest) -> GenerateResponse:
        return GenerateResponse("r", tuple(self._chunks(request)))

    async def _stream(self, http: web.Request, request: GenerateRequest) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(http)
        for place, chunk in enumerate(self._chunks(request)):
            if self.pause_s:
                await asyncio.sleep(self.pause_s)
            if place == 2 and await self._interrupt(http, response):
                return response
            body = self._damaged(encode_response(GenerateResponse("r", (chunk,))))
            await response.write(b"data: " + body + b"\n\n")
        await asyncio.sleep(self.farewell_s)
        await response.write(b"data: [DONE]\n\n")
        return response

    # --- faults --------------------------------------------------------------------------

    async def _interrupt(self, http: web.Request, response: web.StreamResponse) -> bool:
        """The faults of a stream after its second chunk. True: no more comes."""
        match self.fault:
            case "hang":
                await asyncio.sleep(60)
            case "drip":
                for _ in range(1000):
                    await asyncio.sleep(0.05)
                    await response.write(b": still here\n\n")
            case "empty chunks":
                for _ in range(1000):
                    await asyncio.sleep(0.05)
                    empty = encode_response(GenerateResponse("r", (Choice(0, ()),)))
                    await response.write(b"data: " + empty + b"\n\n")
            case "dies":
                assert http.transport is not None
                http.transport.abort()
                return True
            case "ends early":
                return True
            case "done too soon":
                await response.write(b"data: [DONE]\n\n")
                return True
            case "no events":
                await response.write(b"<html>\n\n")
            case "endless line":
                await response.write(b"data: " + b"x" * 5 * 2**20)
            case "reports an error":
                await response.write(b'data: {"error": {"message": "out of memory"}}\n\n')
        return False

    def _spoiled(self, chunk: Choice, place: int) -> Choice:
        """Chunks that parse and are wrong."""
        if place != 0:
            return chunk
        match self.fault:
            case "foreign ids":
                return replace(chunk, token_ids=(self.vocab_size,) * len(chunk.token_ids))
            case "too many tokens":
                return replace(chunk, token_ids=chunk.token_ids * 600, logprobs=None)
            case "other answer":
                return replace(chunk, index=5)
            case "aborts":
                return replace(chunk, finish_reason="abort")
            case "no logprobs":
                return replace(chunk, logprobs=None)
            case "other logprobs":
                assert chunk.logprobs is not None
                other = TokenLogprob((chunk.token_ids[0] + 1) % self.vocab_size, -1.0, 1)
                return replace(
                    chunk, logprobs=tuple(replace(one, chosen=other) for one in chunk.logprobs)
                )
        return chunk

    def _damaged(self, body: bytes) -> bytes:
        """Bytes that do not parse."""
        match self.fault:
            case "garbage":
                return b"\xff\x00{" + body
            case "other json":
                return json.dumps({"answer": 42}).encode()
            case "endless body":
                return body + b" " * 2**20
        return body


def logprobs_of(ids: tuple[int, ...], n_top: int | None) -> tuple[PositionLogprobs, ...] | None:
    """-0.5 for the chosen id; the alternatives are it and the next ids up, the last impossible."""
    if n_top is None:
        return None
    return tuple(
        PositionLogprobs(
            TokenLogprob(one, -0.5, 1),
            tuple(
                TokenLogprob(one ^ step, -0.5 - step if step < 2 else float("-1e300"), step + 1)
                for step in range(n_top)
            ),
        )
        for one in ids
    )


def json_response(body: bytes) -> web.Response:
    return web.Response(body=body, content_type="application/json")


@asynccontextmanager
async def running(node: FakeNode, folder: Path, *, tls: bool = True) -> AsyncIterator[FakeNode]:
    """Serve `node` on a free port until the block ends; its identity lies in `folder`."""
    app = web.Application(client_max_size=2**26)
    app.add_routes([web.get(MODELS_PATH, node.models), web.post(GENERATE_PATH, node.generate)])
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.2)
    await runner.setup()
    context = None
    if tls:
        identity = ensure_identity(folder)
        context = server_context(identity)
        node.pin = identity.pin
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
    await site.start()
    host, port = runner.addresses[0][:2]
    node.url = f"{'https' if tls else 'http'}://{host}:{port}"
    try:
        yield node
    finally:
        await runner.cleanup()
