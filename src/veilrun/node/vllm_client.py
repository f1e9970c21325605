"""Asking a vLLM over its Unix socket: HTTP with aiohttp, nothing else.

Invariant: every call ends when the connection ends, and raises `UsageError` (vLLM refused the
request), `BusyError` (it is gone or broken) or another `TransportError`, never aiohttp's own.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path

import aiohttp

from veilrun.errors import BusyError, TransportError
from veilrun.node.vllm_wire import (
    RESTART_S,
    EventLines,
    read_context_length,
    read_error,
    read_event,
)
from veilrun.wire.generate import (
    GENERATE_PATH,
    HEALTH_PATH,
    MODELS_PATH,
    GenerateRequest,
    GenerateResponse,
    encode_request,
)


class VllmClient:
    """The requests to one vLLM. `close` ends those that are open."""

    def __init__(self, socket: Path, api_key: str) -> None:
        # One connection per request: its end tells vLLM to drop the request. And vLLM drops idle
        # ones after five seconds, just as the next request is written to it.
        connector = aiohttp.UnixConnector(path=str(socket), limit=0, force_close=True)
        self._session = aiohttp.ClientSession(
            base_url="http://vllm",
            connector=connector,
            headers={"Authorization": f"Bearer {api_key}", "Content-Type": "application/json"},
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=10),
        )
        self._streams: set[aiohttp.ClientResponse] = set()

    async def close(self) -> None:
        """End every open request: its reader gets a `BusyError`."""
        # Closing the session alone would leave a reader that is not waiting just now with an
        # error of another kind.
        for stream in self._streams:
            stream.close()
        await self._session.close()

    async def is_healthy(self) -> bool:
        """Whether it says so. It does before it has computed anything."""
        try:
            async with self._session.get(HEALTH_PATH) as answer:
                return answer.status == 200
        except (aiohttp.ClientError, OSError):
            return False

    async def context_length(self) -> int:
        """What it takes for the context: memory may hold less than the model's own."""
        try:
            async with self._session.get(MODELS_PATH) as answer:
                if answer.status != 200:
                    raise read_error(await answer.content.read(4096), answer.status)
                return read_context_length(await answer.read())
        except (aiohttp.ClientError, OSError) as error:
            raise _broken(error) from error

    async def ask(self, request: GenerateRequest) -> AsyncGenerator[GenerateResponse]:
        """The chunks of one answer, up to the end of the stream. Closing this drops the request.

        Raises:
            UsageError: vLLM refuses it; BusyError: vLLM is gone or broken; TransportError: it
                answers nonsense.
        """
        lines, is_done = EventLines(), False
        try:
            async with self._session.post(GENERATE_PATH, data=encode_request(request)) as stream:
                self._streams.add(stream)
                try:
                    if stream.status != 200:
                        raise read_error(await stream.content.read(4096), stream.status)
                    async for block in stream.content.iter_any():
                        for data in lines.feed(block):
                            if (chunk := read_event(data)) is None:
                                is_done = True
                            else:
                                yield chunk
                finally:
                    self._streams.discard(stream)
        except (aiohttp.ClientError, OSError) as error:
            raise _broken(error) from error
        if not is_done:
            raise TransportError("vLLM's answer ended too early")


def _broken(error: Exception) -> BusyError:
    return BusyError(f"the connection to vLLM broke: {error}", RESTART_S)
