"""The way to a node that serves the middle of a model: this side embeds, scores and chooses.

Each answer is a session at the node. The prompt goes in pieces; after that, every step sends one
row and gets one state, so a step costs a way there and back. What was sent is kept as plain ids:
when the node has lost a session, another one is built from the beginning, once in a row.

The node is not trusted: its card must name the checkpoint that our key made, its states must have
the right shape and be finite. Not covered: states that the model would not have computed; and
equal tokens are equal rows, so counts and repetitions show, as those of cipher ids do.

Invariant: what the node does can only cause a `PeerError` or a `TransportError`; no id, plain or
cipher, is ever sent.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Final

import aiohttp

from veilrun.errors import (
    StallError,
    TransportError,
    VeilrunError,
)
from veilrun.serve.ask import Ask, Delta, StopReason
from veilrun.serve.attested import Requirement
from veilrun.serve.ends import Ends
from veilrun.serve.fan_in import fan_in
from veilrun.serve.kit import IdCodec
from veilrun.serve.node_address import NodeAddress
from veilrun.serve.node_answers import NodeRefusal
from veilrun.serve.node_http import (
    NodeTimeouts,
    check_status,
    network_faults,
    read_body,
    reason,
)
from veilrun.serve.node_link import NodeLink
from veilrun.serve.sampling import Sampler
from veilrun.wire.manifest import NodeCard
from veilrun.wire.middle import (
    FRAME_TYPE,
    MIDDLE_PATH,
    SESSION_LOST,
    End,
    Extend,
    Rows,
    decode_states,
    encode_request,
    states_bytes,
)

ANSWERS_AT_ONCE: Final = 4
"""Answers of one prompt that the node works on together; each takes a session."""

_PIECE_BYTES: Final = 2 * 2**20
"""Rows of a prompt in one request: half of what a node takes by default."""

_FAREWELL_S: Final = 2.0


class _LostError(Exception):
    """The node does not know the session, or nobody can say whether it got the last rows."""


@dataclass(slots=True)
class _Text:
    """A session as this side knows it. ids: all of its plain ids; the node has `n_sent` rows."""

    ids: list[int]
    name: str = field(default_factory=lambda: secrets.token_hex(16))
    n_sent: int = 0


class MiddleClient:
    """One node, one codec and both ends. Use as `async with MiddleClient(...) as node`."""

    def __init__(
        self,
        address: NodeAddress,
        codec: IdCodec,
        eos_token_ids: tuple[int, ...],
        ends: Ends,
        timeouts: NodeTimeouts | None = None,
        requirement: Requirement | None = None,
    ) -> None:
        """`requirement`: what the node's machine must prove before anything is sent to it."""
        self._address = address
        self._codec = codec
        self._eos_token_ids = eos_token_ids
        self._ends = ends
        self._timeouts = timeouts or NodeTimeouts()
        self._link = NodeLink(address, codec, self._timeouts, requirement, "client")
        self._farewells: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> MiddleClient:
        self._link.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(*self._farewells, return_exceptions=True)
        await self._link.close()

    async def card(self) -> NodeCard:
        """The node's card, once its machine is what it must be, and serves what our key encrypted.

        Raises:
            VerificationError: it is something else, or serves something else.
        """
        return await self._link.card()

    async def stream(self, ask: Ask) -> AsyncGenerator[list[Delta]]:
        """Yield the answers' next tokens as they come. Closing the generator ends the sessions."""
        await self.card()
        answers = [self._answer(ask, index) for index in range(ask.sampling.n)]
        merged = answers[0] if len(answers) == 1 else fan_in(answers, n_at_once=ANSWERS_AT_ONCE)
        with self._link.forgetting():
            async with aclosing(merged) as batches:
                async for batch in batches:
                    yield batch

    async def complete(self, ask: Ask) -> list[Delta]:
        """The whole answers, token by token."""
        try:
            async with asyncio.timeout(self._timeouts.answer_s):
                async with aclosing(self.stream(ask)) as batches:
                    return [delta async for batch in batches for delta in batch]
        except TimeoutError as error:
            raise StallError(f"no answer within {self._timeouts.answer_s:.0f} s") from error

    async def _answer(self, ask: Ask, index: int) -> AsyncGenerator[list[Delta]]:
        sampling = ask.sampling
        end_ids = () if sampling.ignore_eos else self._eos_token_ids
        sampler, text = Sampler(ask, index, end_ids), _Text(list(ask.prompt_ids))
        try:
            for n_tokens in range(1, ask.max_tokens + 1):
                state = await self._state(text)
                # The head is the largest matrix of the model: others are streaming meanwhile.
                scores = await asyncio.to_thread(self._ends.scores, state)
                token, position = sampler.choose(scores)
                positions = None if position is None else (position,)
                if token in end_ids or n_tokens == ask.max_tokens:
                    why: StopReason = "stop" if token in end_ids else "length"
                    yield [Delta(index, (token,), why, positions)]
                    return
                yield [Delta(index, (token,), None, positions)]
                text.ids.append(token)
        finally:
            task = asyncio.create_task(self._end(text.name))
            self._farewells.add(task)
            task.add_done_callback(self._farewells.discard)

    async def _state(self, text: _Text) -> Rows:
        """[hidden]: the final state after all ids of a text."""
        try:
            return await self._send(text)
        except _LostError:
            text.name, text.n_sent = secrets.token_hex(16), 0
        await self.card()  # perhaps it was restarted, on another machine
        try:
            return await self._send(text)
        except _LostError as error:
            raise TransportError("the node forgets the session as soon as it has begun") from error

    async def _send(self, text: _Text) -> Rows:
        step = max(1, _PIECE_BYTES // (4 * self._ends.hidden))
        states: Rows | None = None
        while text.n_sent < len(text.ids):
            ids = text.ids[text.n_sent : text.n_sent + step]
            is_last = text.n_sent + len(ids) == len(text.ids)
            request = Extend(text.name, text.n_sent, self._ends.rows(ids), int(is_last))
            states = await self._extend(request)
            text.n_sent += len(ids)
        if states is None:
            raise RuntimeError("a text without new ids has no new state")
        state: Rows = states[0]
        return state

    async def _extend(self, request: Extend) -> Rows:
        hidden, n_states = self._ends.hidden, request.n_states
        limit_s = self._timeouts.stall_s
        with network_faults(limit_s):
            try:
                async with self._post(encode_request(request), limit_s) as response:
                    if response.status == SESSION_LOST:
                        raise _LostError
                    if response.status == 400:
                        raise NodeRefusal(f"the node refuses the rows: {await reason(response)}")
                    await check_status(response)
                    body = await read_body(response, states_bytes(n_states, hidden))
            except (aiohttp.ClientConnectorError, aiohttp.ServerTimeoutError):
                raise
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
                raise _LostError from error  # perhaps it was restarted
        return decode_states(body, n_states=n_states, hidden=hidden)

    async def _end(self, name: str) -> None:
        """Tell the node that a session is over. It would find out: this only spares its memory."""
        try:
            with network_faults(_FAREWELL_S):
                async with self._post(encode_request(End(name)), _FAREWELL_S) as response:
                    await read_body(response, 2**14)
        except VeilrunError:
            return

    def _post(self, body: bytes, limit_s: float) -> aiohttp.client._RequestContextManager:
        return self._link.session.post(
            self._address.url + MIDDLE_PATH,
            data=body,
            headers={"Content-Type": FRAME_TYPE},
            timeout=aiohttp.ClientTimeout(sock_connect=self._timeouts.connect_s, sock_read=limit_s),
            allow_redirects=False,
        )
