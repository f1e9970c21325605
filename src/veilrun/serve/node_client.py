"""The way to one node: HTTPS with the node's certificate pinned, cipher ids only.

The node is not trusted. Before the first token is sent, its card must name the checkpoint
that our key made; the card is asked for again after every failure but a refusal of one
request. What it answers is checked by `node_answers`. Leaving a stream early closes its
connection, and that stops the generation.

Invariant: what the node does can only cause a `PeerError` or a `TransportError`.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from functools import partial

import aiohttp

from veilrun.errors import StallError, TransportError
from veilrun.serve.ask import Ask, Delta
from veilrun.serve.attested import Requirement
from veilrun.serve.kit import IdCodec
from veilrun.serve.node_address import NodeAddress
from veilrun.serve.node_answers import (
    MAX_WHOLE_BYTES,
    AnswerReader,
    EventReader,
    NodeRefusal,
    max_body_bytes,
)
from veilrun.serve.node_http import (
    NodeTimeouts,
    check_status,
    hear_out,
    network_faults,
    read_body,
    reason,
)
from veilrun.serve.node_link import NodeLink
from veilrun.wire.generate import GENERATE_PATH, GenerateRequest, SamplingParams, encode_request
from veilrun.wire.manifest import NodeCard

__all__ = ["NodeClient", "NodeTimeouts", "seal"]


def seal(
    ask: Ask, codec: IdCodec, eos_token_ids: tuple[int, ...], *, model: str, salt: str, stream: bool
) -> GenerateRequest:
    """The only place where plain ids become what is sent: every id goes through the codec."""
    sampling = ask.sampling
    params = SamplingParams(
        n=sampling.n,
        max_tokens=ask.max_tokens,
        min_tokens=min(sampling.min_tokens, ask.max_tokens),
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        seed=sampling.seed,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        repetition_penalty=sampling.repetition_penalty,
        stop_token_ids=() if sampling.ignore_eos else codec.encode(eos_token_ids),
        ignore_eos=sampling.ignore_eos,
        logit_bias=dict(
            zip(codec.encode(tuple(sampling.logit_bias)), sampling.logit_bias.values(), strict=True)
        ),
        logprobs=sampling.logprobs,
    )
    return GenerateRequest(
        token_ids=codec.encode(ask.prompt_ids),
        sampling_params=params,
        model=model,
        stream=stream,
        cache_salt=salt,
    )


class NodeClient:
    """One node and one codec. Use as `async with NodeClient(...) as node`."""

    def __init__(
        self,
        address: NodeAddress,
        codec: IdCodec,
        eos_token_ids: tuple[int, ...],
        timeouts: NodeTimeouts | None = None,
        requirement: Requirement | None = None,
    ) -> None:
        """`requirement`: what the node's machine must prove before anything is sent to it."""
        self._address = address
        self._codec = codec
        self._eos_token_ids = eos_token_ids
        self._timeouts = timeouts or NodeTimeouts()
        self._link = NodeLink(address, codec, self._timeouts, requirement, "node")
        # Requests share cached prefixes at the node only when they know the same salt.
        self._salt = secrets.token_urlsafe(32)

    async def __aenter__(self) -> NodeClient:
        self._link.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._link.close()

    async def card(self) -> NodeCard:
        """The node's card, once its machine is what it must be, and serves what our key encrypted.

        Raises:
            VerificationError: it is something else, or serves something else.
        """
        return await self._link.card()

    async def stream(self, ask: Ask) -> AsyncGenerator[list[Delta]]:
        """Yield the answers' next tokens as they come. Closing the generator stops the node."""
        answers, events = AnswerReader(ask, self._codec), EventReader()
        now_s, stall_s = asyncio.get_running_loop().time, self._timeouts.stall_s
        async with self._post(ask, stream=True) as response:
            progress_s = now_s()
            with network_faults(stall_s):
                while not answers.complete:
                    data = await response.content.readany()
                    if not data:
                        raise TransportError("the node closed the stream in mid-answer")
                    deltas = answers.events(events.feed(data))
                    if deltas:
                        progress_s = now_s()
                        yield deltas
                    elif now_s() - progress_s > stall_s:
                        raise StallError(f"no token from the node for {stall_s:.0f} s")
            await hear_out(response)

    async def complete(self, ask: Ask) -> list[Delta]:
        """The whole answers: one `Delta` each, or many where they could be long."""
        limit_bytes = max_body_bytes(ask)
        try:
            async with asyncio.timeout(self._timeouts.answer_s):
                if limit_bytes > MAX_WHOLE_BYTES:
                    async with aclosing(self.stream(ask)) as batches:
                        return [delta async for batch in batches for delta in batch]
                answers = AnswerReader(ask, self._codec)
                async with self._post(ask, stream=False) as response:
                    with network_faults(self._timeouts.answer_s):
                        return answers.whole(await read_body(response, limit_bytes))
        except TimeoutError as error:
            self._link.forget()
            raise StallError(f"no answer within {self._timeouts.answer_s:.0f} s") from error

    @asynccontextmanager
    async def _post(self, ask: Ask, *, stream: bool) -> AsyncIterator[aiohttp.ClientResponse]:
        card = await self.card()
        request = seal(
            ask,
            self._codec,
            self._eos_token_ids,
            model=card.model,
            salt=self._salt,
            stream=stream,
        )
        body = encode_request(request)
        with self._link.forgetting():
            response = await self._send(body, stream=stream)
            try:
                with network_faults(self._silence_s(stream=stream)):
                    if response.status == 400:
                        raise NodeRefusal(f"the node refuses the request: {await reason(response)}")
                    await check_status(response)
                yield response
            finally:
                # Half-read answers close the connection; complete ones have given it back.
                response.close()

    async def _send(self, body: bytes, *, stream: bool) -> aiohttp.ClientResponse:
        """Post, once more if an idle connection turns out to have been closed meanwhile."""
        silence_s = self._silence_s(stream=stream)
        post = partial(
            self._link.session.post,
            self._address.url + GENERATE_PATH,
            data=body,
            timeout=aiohttp.ClientTimeout(
                sock_connect=self._timeouts.connect_s, sock_read=silence_s
            ),
            allow_redirects=False,
        )
        with network_faults(silence_s):
            try:
                return await post()
            except (aiohttp.ClientConnectorError, aiohttp.ServerTimeoutError):
                raise
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
                self._link.forget()  # perhaps it was restarted, with something else
                await self.card()
                return await post()

    def _silence_s(self, *, stream: bool) -> float:
        # A whole answer is silent until it is there.
        return self._timeouts.stall_s if stream else self._timeouts.answer_s
