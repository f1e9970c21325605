"""What every protocol and stage is driven over: whole frames to and from one named peer.

A frame is bytes of any content. Frames arrive whole and in order, or the connection ends.

Invariants. A `Connection` that failed or was cancelled half-way through a frame is dead: each
later call raises `TransportError`, so a reader never sees the middle of a frame as its start.
Whatever the peer sends, a call returns or raises `PeerError` or `TransportError`; nothing
waits longer than its `Bounds`.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Final, Self, final

from veilrun.errors import DecodeError, PeerError, TransportError, UsageError


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much, and how long.

    max_frame_bytes: both ways; a larger frame is the sender's fault. The dealer's tables for
        one layer are the largest frames there are, tens of MB.
    connect_timeout_s: to reach the peer and agree on keys; also to part from it.
    send_timeout_s, receive_timeout_s: for one whole frame, waiting included.
    """

    max_frame_bytes: int = 256 * 2**20
    connect_timeout_s: float = 10.0
    send_timeout_s: float = 60.0
    receive_timeout_s: float = 60.0


DEFAULT_BOUNDS: Final = Bounds()

_MAGIC: Final = b"VRF\x01"
FRAME_HEADER: Final = struct.Struct("<4sI")
"""What goes before each frame on a wire: magic and version, then its length in bytes."""


def frame_header(frame: bytes) -> bytes:
    """What is sent before `frame`."""
    return FRAME_HEADER.pack(_MAGIC, len(frame))


def announced_bytes(header: bytes, peer: str, bounds: Bounds) -> int:
    """The length of the frame after `header`.

    Raises:
        DecodeError: not a frame of this version. PeerError: too large a frame.
    """
    magic, n_bytes = FRAME_HEADER.unpack(header)
    if magic != _MAGIC:
        raise DecodeError(f"{peer} does not send frames of version 1")
    limit = bounds.max_frame_bytes
    if n_bytes > limit:
        raise PeerError(f"{peer} sends a frame of {n_bytes} bytes, the limit is {limit}")
    return int(n_bytes)


@dataclass(frozen=True, slots=True)
class Traffic:
    """Whole frames so far, this side's view. Bytes are those of the frames alone: the length
    prefix and TLS add a few dozen per frame.
    """

    n_sent_frames: int = 0
    sent_bytes: int = 0
    n_received_frames: int = 0
    received_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame on its way, as whoever watches the wire would see it without TLS."""

    sender: str
    receiver: str
    content: bytes


Watch = Callable[[Frame], None]


class Connection(ABC):
    """Frames to and from one peer. Closes at the end of an `async with` block.

    peer: the other side's name, as this side calls it.
    """

    def __init__(self, peer: str, bounds: Bounds) -> None:
        self.peer = peer
        self._bounds = bounds
        self._traffic = Traffic()
        self._is_closed = False  # by this side
        self._end: str | None = None  # why nothing passes any more
        self._sending = asyncio.Lock()  # frames of concurrent callers do not mix
        self._receiving = asyncio.Lock()

    @property
    @final
    def traffic(self) -> Traffic:
        """What passed so far."""
        return self._traffic

    @final
    async def send(self, frame: bytes) -> None:
        """Hand one frame to the network; the peer may not have it yet.

        Raises:
            UsageError: the frame is larger than both sides agreed, or we closed before.
            TransportError: the connection is lost, or takes nothing for `send_timeout_s`.
        """
        if len(frame) > self._bounds.max_frame_bytes:
            raise UsageError(
                f"frame of {len(frame)} bytes to {self.peer}, "
                f"the limit is {self._bounds.max_frame_bytes}"
            )
        async with self._sending, self._alive("took no frame", self._bounds.send_timeout_s):
            await self._send(frame)
            was = self._traffic
            self._traffic = replace(
                was,
                n_sent_frames=was.n_sent_frames + 1,
                sent_bytes=was.sent_bytes + len(frame),
            )

    @final
    async def receive(self) -> bytes:
        """The peer's next frame.

        Raises:
            PeerError: what came is no frame, or a larger one than both sides agreed.
            TransportError: the connection is lost, or silent for `receive_timeout_s`.
            UsageError: we closed before.
        """
        async with self._receiving, self._alive("sent no frame", self._bounds.receive_timeout_s):
            frame = await self._receive()
            was = self._traffic
            self._traffic = replace(
                was,
                n_received_frames=was.n_received_frames + 1,
                received_bytes=was.received_bytes + len(frame),
            )
            return frame

    @final
    async def close(self) -> None:
        """Send what `send` accepted, then part. Never fails; a second call does nothing."""
        if not self._is_closed:
            self._is_closed = True
            await self._close()

    @final
    async def __aenter__(self) -> Self:
        return self

    @final
    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    @contextlib.asynccontextmanager
    async def _alive(self, silence: str, timeout_s: float) -> AsyncIterator[None]:
        """The body runs on a living connection, within the time, and a failure is the last."""
        if self._is_closed:
            raise UsageError(f"this side has closed the connection to {self.peer}")
        if self._end is not None:
            raise TransportError(f"the connection to {self.peer} has ended: {self._end}")
        try:
            async with asyncio.timeout(timeout_s):
                yield
        except BaseException as error:
            failure = error
            if isinstance(error, TimeoutError):
                failure = TransportError(f"{self.peer} {silence} within {timeout_s:g} s")
            if self._end is None:
                self._end = str(failure) or type(failure).__name__
                self._abort()
            if failure is error:
                raise
            raise failure from error

    # What a kind of connection implements. Failures of the network are `TransportError`.

    @abstractmethod
    async def _send(self, frame: bytes) -> None: ...

    @abstractmethod
    async def _receive(self) -> bytes: ...

    @abstractmethod
    async def _close(self) -> None:
        """Deliver what was sent, then end, within `connect_timeout_s`; raises nothing."""

    @abstractmethod
    def _abort(self) -> None:
        """End at once; raises nothing."""
