"""One request being answered: what has been sent, how it ends, and the two shapes of an answer.

Invariant: every answer index ends exactly once: with the engine's own finish_reason, or with
"abort" for those the engine did not end.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Final, Protocol

from aiohttp import web

from veilrun.node.metrics import Outcome
from veilrun.wire.generate import (
    Choice,
    GenerateRequest,
    GenerateResponse,
    Usage,
    encode_response,
)

ID_PREFIX: Final = "generate-tokens-"
"""vLLM puts it before the client's id, in answers and in aborts; so do we."""

_READ_S: Final = 60.0
"""A client that reads nothing for so long is taken for gone: it would hold its place for ever."""

_STREAM_HEADERS: Final = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-store",
}


class ClientGone(ConnectionError):
    """Nobody reads the answer any more. An engine's `ConnectionError` is something else."""


class Exchange:
    """A request, the task that answers it, and its tally. One event loop."""

    def __init__(self, request: GenerateRequest, answer_id: str) -> None:
        self.request = request
        self.answer_id = answer_id
        self.n_out = 0
        self._task = asyncio.current_task()
        self._abort_asked = False
        self._open = set(range(request.sampling_params.n))
        self._settled = False
        self._aborted = False
        self._failed = False

    @property
    def usage(self) -> Usage:
        """Token counts so far."""
        return Usage(len(self.request.token_ids), self.n_out)

    @property
    def outcome(self) -> Outcome:
        """How a request that got its answer is counted."""
        if self._failed:
            return "failed"
        return "aborted" if self._aborted else "answered"

    def fail(self) -> None:
        """Note that the engine broke off in mid-answer."""
        self._failed = True

    def note(self, choice: Choice) -> None:
        """Count a piece that the engine gave."""
        self.n_out += len(choice.token_ids)
        if choice.finish_reason is not None:
            self._open.discard(choice.index)
            self._aborted |= choice.finish_reason == "abort"

    def rest(self) -> Iterator[Choice]:
        """The ends of the answers that the engine did not end."""
        empty = None if self.request.sampling_params.logprobs is None else ()
        for index in sorted(self._open):
            end = Choice(index, (), "abort", logprobs=empty)
            self.note(end)
            yield end

    def abort(self) -> None:
        """Make the answering task stop where it stands and send the ends."""
        # Cancelling costs nothing per token; a race against an event would, for every token.
        if self._task is not None and not self._abort_asked and not self._settled:
            self._abort_asked = True
            self._task.cancel()

    def settle(self) -> None:
        """From here on `abort` does nothing: only the ends are left to send."""
        self._settled = True

    def absorb_abort(self) -> bool:
        """In the task, after CancelledError: whether `abort` alone was behind it."""
        if not self._abort_asked or self._task is None:
            return False
        return self._task.uncancel() == 0


class Sink(Protocol):
    """Where the pieces of an answer go."""

    async def write(self, choice: Choice) -> None:
        """Take the next piece."""

    async def finish(self) -> web.StreamResponse:
        """Send what is left."""


class WholeAnswer:
    """Collects the pieces; one JSON body at the end."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._answers: dict[int, list[Choice]] = {}

    async def write(self, choice: Choice) -> None:
        self._answers.setdefault(choice.index, []).append(choice)

    async def finish(self) -> web.StreamResponse:
        choices = tuple(_joined(self._answers[index]) for index in sorted(self._answers))
        exchange = self._exchange
        body = GenerateResponse(exchange.answer_id, choices, exchange.usage)
        return web.Response(body=encode_response(body), content_type="application/json")


class Stream:
    """Sends each piece as a server-sent event; the headers go with the first one."""

    def __init__(self, http: web.Request, exchange: Exchange) -> None:
        self._http = http
        self._exchange = exchange
        self._response: web.StreamResponse | None = None

    @property
    def has_begun(self) -> bool:
        """Whether it is too late for a status code."""
        return self._response is not None

    async def write(self, choice: Choice) -> None:
        await self._send(encode_response(GenerateResponse(self._exchange.answer_id, (choice,))))

    async def finish(self) -> web.StreamResponse:
        exchange = self._exchange
        if exchange.request.include_usage:
            end = GenerateResponse(exchange.answer_id, (), exchange.usage)
            await self._send(encode_response(end))
        return await self._end()

    async def fail(self, error_body: dict[str, object]) -> web.StreamResponse:
        """End a stream that has begun with an error event."""
        await self._send(json.dumps(error_body).encode())
        return await self._end()

    async def _send(self, data: bytes) -> None:
        try:
            async with asyncio.timeout(_READ_S):
                if self._response is None:
                    self._response = web.StreamResponse(headers=_STREAM_HEADERS)
                    await self._response.prepare(self._http)
                await self._response.write(b"data: " + data + b"\n\n")
        except TimeoutError as error:
            raise ClientGone("the client has stopped reading") from error
        except ConnectionError as error:
            raise ClientGone("the client has left") from error

    async def _end(self) -> web.StreamResponse:
        await self._send(b"[DONE]")
        if self._response is None:
            raise RuntimeError("a stream ends after it has begun")
        try:
            await self._response.write_eof()
        except ConnectionError as error:
            raise ClientGone("the client has left") from error
        return self._response


def _joined(pieces: list[Choice]) -> Choice:
    last = pieces[-1]
    logprobs = None
    if last.logprobs is not None:
        logprobs = tuple(one for piece in pieces for one in piece.logprobs or ())
    token_ids = tuple(one for piece in pieces for one in piece.token_ids)
    return replace(last, token_ids=token_ids, logprobs=logprobs)
