"""An open way to one node, and its card once everything about the node is as it must be.

The card is asked for before anything else is sent, and again after `forget`, which every failure
but a refusal of one request calls: who answers next may be another.

Invariant: what the node does can only cause a `PeerError` or a `TransportError`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import aiohttp

from veilrun.errors import BusyError, PeerError, TransportError, VerificationError
from veilrun.serve.attested import Gate, Requirement
from veilrun.serve.kit import IdCodec
from veilrun.serve.node_address import NodeAddress
from veilrun.serve.node_answers import NodeRefusal
from veilrun.serve.node_http import NodeTimeouts, get_card, open_session, verify_card
from veilrun.wire.manifest import Ends, NodeCard


class NodeLink:
    """Opened by `open`, ended by `close`. ends: where embedding and head must be."""

    def __init__(
        self,
        address: NodeAddress,
        codec: IdCodec,
        timeouts: NodeTimeouts,
        requirement: Requirement | None,
        ends: Ends,
    ) -> None:
        """`requirement`: what the node's machine must prove before anything is sent to it."""
        self._address, self._codec, self._timeouts, self._ends = address, codec, timeouts, ends
        self._session: aiohttp.ClientSession | None = None
        self._gate = Gate(address, requirement)
        self._card: NodeCard | None = None
        self._card_lock = asyncio.Lock()

    def open(self) -> None:
        """Make the pool of connections; none is opened yet."""
        self._session = open_session(self._address, self._gate.pin)

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    @property
    def session(self) -> aiohttp.ClientSession:
        """The pool of connections."""
        if self._session is None:
            raise RuntimeError("a node's client is used outside of `async with`")
        return self._session

    async def card(self) -> NodeCard:
        """The node's card, once its machine is what it must be, and serves what our key encrypted.

        Raises:
            VerificationError: it is something else, or serves something else.
        """
        async with self._card_lock:
            if self._card is None or not self._gate.is_open:
                self._card = None
                await self._gate.open(self.session, self._timeouts)
                card = await get_card(self.session, self._address, self._timeouts)
                verify_card(card, self._codec)
                if card.manifest.ends != self._ends:
                    raise VerificationError(
                        f"the node says that embedding and head are with the "
                        f"{card.manifest.ends}; our kit says with the {self._ends}"
                    )
                self._card = card
            return self._card

    def forget(self) -> None:
        """Ask for the card again before anything else is sent."""
        self._card = None

    @contextmanager
    def forgetting(self) -> Iterator[None]:
        """`forget` on a failure that is more than a refusal of one request."""
        try:
            yield
        except (PeerError, TransportError) as error:
            if not isinstance(error, BusyError | NodeRefusal):
                self.forget()
            raise
