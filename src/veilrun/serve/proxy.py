"""The OpenAI-compatible endpoint on the trusted side: text in, cipher ids out, and back.

    application ──text──► proxy ──cipher ids──► node
                  ◄─text──       ◄─cipher ids──

Invariant: text and plain ids leave this process towards the application only; a request either
gets its answer from the pinned node or an error, never an answer from elsewhere.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Final

from aiohttp import ClientConnectionResetError, web

from veilrun.errors import VeilrunError
from veilrun.serve.answers import Answer, Piece
from veilrun.serve.ask import Ask
from veilrun.serve.fan_in import fan_in
from veilrun.serve.guards import (
    HEALTH_PATH,
    add_mode_headers,
    failure,
    guards,
    read_json,
)
from veilrun.serve.kit import Kit, Node
from veilrun.serve.openai_errors import RequestFault
from veilrun.serve.openai_requests import (
    ChatRequest,
    CompletionRequest,
    Options,
    decode_chat,
    decode_completion,
)
from veilrun.serve.openai_responses import (
    DONE,
    ChatShape,
    CompletionShape,
    Counts,
    Head,
    Shape,
)
from veilrun.serve.text import TextSide

OPEN_ANSWER_TOKENS: Final = 16_384
"""A chat request without a limit gets the rest of the context, up to this: a model that never
ends its answer must end some time."""

PROMPTS_AT_ONCE: Final = 16
"""Prompts of one completions request that a node works on together."""

MAX_BODY_BYTES: Final = 32 * 2**20

_STREAM_HEADERS: Final = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",  # a reverse proxy in between must not collect the chunks
}


@dataclass(frozen=True, slots=True)
class ProxySettings:
    """host: what the proxy listens on; loopback switches the Host check on.

    api_key: what applications must send as `Authorization: Bearer`; None asks for nothing.
    """

    host: str = "127.0.0.1"
    api_key: str | None = None
    max_body_bytes: int = MAX_BODY_BYTES


@dataclass(frozen=True, slots=True)
class _Job:
    """One request, ready to run: an `Ask` per prompt, and `sampling.n` answers for each."""

    asks: tuple[Ask, ...]
    answers: tuple[tuple[Answer, ...], ...]
    shape: Shape
    options: Options

    def counts(self) -> Counts:
        """The bill so far."""
        return Counts(
            prompt_tokens=sum(len(ask.prompt_ids) for ask in self.asks),
            completion_tokens=sum(one.n_tokens for group in self.answers for one in group),
        )


def create_app(
    kit: Kit, text_side: TextSide, node: Node, settings: ProxySettings
) -> web.Application:
    """The proxy as an aiohttp application; `node` is open and stays the caller's to close.

    Run it with `handler_cancellation=True`, so that an application that leaves is noticed.
    """
    proxy = _Proxy(kit, text_side, node)
    app = web.Application(
        middlewares=guards(host=settings.host, api_key=settings.api_key),
        client_max_size=settings.max_body_bytes,
    )
    app.on_response_prepare.append(add_mode_headers)
    app.add_routes(
        [
            web.get(HEALTH_PATH, proxy.health, allow_head=False),
            web.get("/v1/models", proxy.models, allow_head=False),
            web.get("/v1/models/{model:.+}", proxy.model, allow_head=False),
            web.post("/v1/chat/completions", proxy.chat),
            web.post("/v1/completions", proxy.completions),
        ]
    )
    return app


class _Proxy:
    """The handlers."""

    def __init__(self, kit: Kit, text_side: TextSide, node: Node) -> None:
        self._kit = kit
        self._text_side = text_side
        self._node = node
        self._eos_token_ids = frozenset(kit.eos_token_ids)
        self._model_entry = {
            "id": kit.name,
            "object": "model",
            "created": int(time.time()),
            "owned_by": "veilrun",
            "max_model_len": kit.max_model_len,
        }

    async def health(self, _: web.Request) -> web.Response:
        """This process answers. Whether the node does, requests tell."""
        return web.json_response({"status": "ok"})

    async def models(self, _: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [self._model_entry]})

    async def model(self, request: web.Request) -> web.Response:
        self._check_model(request.match_info["model"])
        return web.json_response(self._model_entry)

    async def chat(self, request: web.Request) -> web.StreamResponse:
        return await self._reply(
            request, await self._chat_job(decode_chat(await read_json(request)))
        )

    async def completions(self, request: web.Request) -> web.StreamResponse:
        job = await self._completion_job(decode_completion(await read_json(request)))
        return await self._reply(request, job)

    # --- from request to job -------------------------------------------------------------

    async def _chat_job(self, chat: ChatRequest) -> _Job:
        options = chat.options
        self._check_model(options.model)
        prompt_ids = await self._text_side.chat_ids(chat.messages)
        ask = await self._ask(prompt_ids, options, param="messages")
        answers = self._answers(0, options, prompt_ids=(), prompt_is_text=True)
        shape = ChatShape(self._head("chatcmpl-"), include_usage=options.include_usage)
        return _Job((ask,), (answers,), shape, options)

    async def _completion_job(self, completion: CompletionRequest) -> _Job:
        options = completion.options
        self._check_model(options.model)
        asks: list[Ask] = []
        answers: list[tuple[Answer, ...]] = []
        for place, prompt in enumerate(completion.prompts):
            is_text = isinstance(prompt, str)
            ids = await self._text_side.prompt_ids(prompt) if isinstance(prompt, str) else prompt
            asks.append(await self._ask(ids, options, param="prompt"))
            first = place * options.sampling.n
            answers.append(self._answers(first, options, prompt_ids=ids, prompt_is_text=is_text))
        shape = CompletionShape(self._head("cmpl-"), include_usage=options.include_usage)
        return _Job(tuple(asks), tuple(answers), shape, options)

    def _check_model(self, model: str) -> None:
        if model != self._kit.name:
            raise RequestFault(
                f"the model {model[:200]!r} does not exist here; this proxy serves "
                f"{self._kit.name!r}",
                param="model",
                code="model_not_found",
                status=404,
            )

    async def _ask(self, prompt_ids: tuple[int, ...], options: Options, *, param: str) -> Ask:
        vocab_size = self._kit.codec.vocab_size
        named_ids = {param: prompt_ids, "logit_bias": tuple(options.sampling.logit_bias)}
        for name, ids in named_ids.items():
            if ids and max(ids) >= vocab_size:
                raise RequestFault(f"{name}: {max(ids)} is not in the vocabulary", param=name)
        if not prompt_ids:
            raise RequestFault(f"{param} comes to no tokens at all", param=param)
        limit = min(self._kit.max_model_len, (await self._node.card()).max_model_len)
        room = limit - len(prompt_ids)
        if room < 1:
            raise RequestFault(
                f"this model's maximum context length is {limit} tokens, and {param} comes to "
                f"{len(prompt_ids)} tokens; shorten it",
                param=param,
                code="context_length_exceeded",
            )
        max_tokens = min(options.max_tokens or OPEN_ANSWER_TOKENS, room)
        return Ask(prompt_ids, max_tokens, options.sampling)

    def _answers(
        self, first: int, options: Options, *, prompt_ids: Sequence[int], prompt_is_text: bool
    ) -> tuple[Answer, ...]:
        return tuple(
            Answer(
                first + place,
                self._text_side,
                self._text_side.detokeniser(prompt_ids, prompt_is_text=prompt_is_text),
                eos_token_ids=self._eos_token_ids,
                stops=options.stops,
                logprobs=options.sampling.logprobs is not None,
            )
            for place in range(options.sampling.n)
        )

    def _head(self, prefix: str) -> Head:
        return Head(prefix + secrets.token_hex(16), int(time.time()), self._kit.name)

    # --- from job to reply ---------------------------------------------------------------

    async def _reply(self, request: web.Request, job: _Job) -> web.StreamResponse:
        if job.options.stream:
            return await self._stream(request, job)
        pieces: dict[int, list[Piece]] = {}
        async with aclosing(self._pieces(job)) as batches:
            async for batch in batches:
                for piece in batch:
                    pieces.setdefault(piece.index, []).append(piece)
        answers = [pieces[index] for index in sorted(pieces)]
        body = job.shape.whole(answers, job.counts())
        return web.Response(body=body, content_type="application/json")

    async def _stream(self, request: web.Request, job: _Job) -> web.StreamResponse:
        """Send pieces as they come. Headers wait for the first: a node that fails at once is
        reported by status, one that fails later by an error event and a missing [DONE].
        """
        response = web.StreamResponse(headers=_STREAM_HEADERS)
        # The application may leave: that ends `_pieces`, and with it the work of the node.
        with suppress(ClientConnectionResetError):
            try:
                async with aclosing(self._pieces(job)) as batches:
                    async for batch in batches:
                        data = b"".join(map(job.shape.chunk, batch))
                        if not response.prepared:
                            await response.prepare(request)
                            data = job.shape.opening(sum(map(len, job.answers))) + data
                        if data:
                            await response.write(data)
                tail = DONE
                if job.options.include_usage:
                    tail = job.shape.usage_chunk(job.counts()) + tail
            except VeilrunError as error:
                if not response.prepared:
                    raise
                tail = b"data: " + failure(error).body() + b"\n\n"
            await response.write(tail)
        return response

    def _pieces(self, job: _Job) -> AsyncGenerator[list[Piece]]:
        streams = [
            self._pieces_of(job.options, ask, answers)
            for ask, answers in zip(job.asks, job.answers, strict=True)
        ]
        return streams[0] if len(streams) == 1 else fan_in(streams, n_at_once=PROMPTS_AT_ONCE)

    async def _pieces_of(
        self, options: Options, ask: Ask, answers: Sequence[Answer]
    ) -> AsyncGenerator[list[Piece]]:
        if not options.stream and not options.stops:
            # Nobody watches and nothing can end it early: one piece is cheaper at both ends.
            deltas = await self._node.complete(ask)
            yield [answers[delta.index].feed(delta) for delta in deltas]
            return
        async with aclosing(self._node.stream(ask)) as batches:
            async for deltas in batches:
                # What a stop string ended may go on at the node.
                yield [
                    answer.feed(delta)
                    for delta in deltas
                    if not (answer := answers[delta.index]).ended
                ]
                if options.stops and all(answer.ended for answer in answers):
                    return  # leaving closes the stream, and that stops the node
