"""Connections over TLS streams. There is no unencrypted variant.

On the stream, per frame: b"VRF", the version, 1 byte: 1; length u32 little-endian; the frame.

Whose certificate is good is the business of the `ssl` contexts handed in. `connect` refuses a
context that checks none. A server whose context asks for client certificates learns from
`name_of` which peer it has before it; otherwise every client that reaches it is accepted.

Invariant: a peer that announces much and sends little costs no memory; the buffer grows with
what has arrived.

Not covered: sizes and times of frames show through TLS.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections.abc import AsyncIterator, Callable
from typing import Final, final

from veilrun.errors import (
    PeerError,
    RefusedError,
    TransportError,
    VeilrunError,
    VerificationError,
)
from veilrun.transport.connection import (
    DEFAULT_BOUNDS,
    FRAME_HEADER,
    Bounds,
    Connection,
    announced_bytes,
    frame_header,
)

_log = logging.getLogger(__name__)

_READ_AHEAD_BYTES: Final = 2**20
_WRITE_BYTES: Final = 2**18
_MAX_WAITING: Final = 16
"""Connections that nobody has accepted yet; one more is turned away."""

NameOf = Callable[[bytes | None, str], str]
"""(the client's certificate in DER if it showed one, its address) -> its name, or PeerError."""


async def connect(
    host: str, port: int, *, peer: str, context: ssl.SSLContext, bounds: Bounds = DEFAULT_BOUNDS
) -> Connection:
    """Connect to `peer` at host:port.

    Raises:
        RefusedError: `context` checks no certificate.
        VerificationError: the certificate is not the expected one.
        PeerError: whoever answers does not speak TLS as we do.
        TransportError: nobody answers, or not within `connect_timeout_s`.
    """
    if context.verify_mode != ssl.CERT_REQUIRED:
        raise RefusedError(f"the TLS context for {peer} checks no certificate")
    try:
        async with asyncio.timeout(bounds.connect_timeout_s):
            reader, writer = await asyncio.open_connection(
                host,
                port,
                ssl=context,
                limit=_READ_AHEAD_BYTES,
                ssl_shutdown_timeout=bounds.connect_timeout_s,
            )
    except ssl.SSLCertVerificationError as error:
        raise VerificationError(f"{peer} at {host}:{port}: {error.verify_message}") from error
    except (ssl.SSLEOFError, ssl.SSLZeroReturnError) as error:
        raise TransportError(f"{peer} at {host}:{port} hung up while agreeing on keys") from error
    except ssl.SSLError as error:
        raise PeerError(f"{peer} at {host}:{port}: no TLS: {error.reason}") from error
    except TimeoutError as error:
        raise TransportError(
            f"{peer} at {host}:{port} did not answer within {bounds.connect_timeout_s:g} s"
        ) from error
    except OSError as error:
        raise TransportError(f"cannot reach {peer} at {host}:{port}: {error}") from error
    return StreamConnection(peer, reader, writer, bounds)


def address_as_name(certificate: bytes | None, address: str) -> str:
    """The name of a client nobody has identified: where it calls from."""
    return address


@contextlib.asynccontextmanager
async def listen(
    host: str,
    port: int,
    *,
    context: ssl.SSLContext,
    name_of: NameOf = address_as_name,
    bounds: Bounds = DEFAULT_BOUNDS,
) -> AsyncIterator[Listener]:
    """Listen while the block runs; port 0 takes a free one. Accepted connections outlive it.

    Raises:
        TransportError: the address is taken or not ours.
    """
    listener = Listener(name_of, bounds)
    try:
        server = await asyncio.start_server(
            listener.welcome,
            host,
            port,
            ssl=context,
            limit=_READ_AHEAD_BYTES,
            ssl_handshake_timeout=bounds.connect_timeout_s,
            ssl_shutdown_timeout=bounds.connect_timeout_s,
        )
    except OSError as error:
        raise TransportError(f"cannot listen at {host}:{port}: {error}") from error
    listener.port = server.sockets[0].getsockname()[1]
    try:
        yield listener
    finally:
        server.close()
        listener.turn_away_waiting()


@final
class Listener:
    """Clients that came, one at a time. port: where it listens."""

    def __init__(self, name_of: NameOf, bounds: Bounds) -> None:
        self.port = 0
        self._name_of = name_of
        self._bounds = bounds
        self._waiting: asyncio.Queue[StreamConnection] = asyncio.Queue(_MAX_WAITING)
        self._is_open = True

    async def accept(self, timeout_s: float | None = None) -> Connection:
        """The next client; without `timeout_s`, however long it takes.

        Raises:
            TransportError: nobody came within `timeout_s`.
        """
        try:
            async with asyncio.timeout(timeout_s):
                return await self._waiting.get()
        except TimeoutError as error:
            raise TransportError(f"nobody connected within {timeout_s:g} s") from error

    def welcome(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Take in a client that TLS let through, or turn it away."""
        address = "{}:{}".format(*(writer.get_extra_info("peername") or ("unknown", 0))[:2])
        certificate = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        try:
            if not self._is_open:  # its handshake ended after the listening did
                raise TransportError("nobody listens any more")
            name = self._name_of(certificate, address)
            self._waiting.put_nowait(StreamConnection(name, reader, writer, self._bounds))
        except (VeilrunError, asyncio.QueueFull) as error:
            _log.warning("turned away %s: %s", address, str(error) or "too many wait already")
            writer.transport.abort()

    def turn_away_waiting(self) -> None:
        """End the connections that nobody accepted, now and from now on."""
        self._is_open = False
        while not self._waiting.empty():
            self._waiting.get_nowait().turn_away()


@final
class StreamConnection(Connection):
    """Frames over one TLS stream."""

    def __init__(
        self,
        peer: str,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        bounds: Bounds,
    ) -> None:
        super().__init__(peer, bounds)
        self._reader = reader
        self._writer = writer

    def turn_away(self) -> None:
        """End at once a connection that was never used."""
        self._abort()

    async def _send(self, frame: bytes) -> None:
        # Piece by piece: one write of a whole large frame would be encrypted and buffered at
        # once, and `drain` would return although the peer takes nothing.
        try:
            self._writer.write(frame_header(frame) + frame[:_WRITE_BYTES])
            await self._writer.drain()
            for begin in range(_WRITE_BYTES, len(frame), _WRITE_BYTES):
                self._writer.write(memoryview(frame)[begin : begin + _WRITE_BYTES])
                await self._writer.drain()
        except OSError as error:
            raise TransportError(f"lost {self.peer}: {error}") from error

    async def _receive(self) -> bytes:
        header = await self._read(FRAME_HEADER.size, "before a frame")
        n_bytes = announced_bytes(header, self.peer, self._bounds)
        return await self._read(n_bytes, "within a frame")

    async def _read(self, n_bytes: int, where: str) -> bytes:
        try:
            return await self._reader.readexactly(n_bytes)
        except asyncio.IncompleteReadError as error:
            raise TransportError(f"{self.peer} closed the connection {where}") from error
        except OSError as error:
            raise TransportError(f"lost {self.peer}: {error}") from error

    async def _close(self) -> None:
        self._writer.close()
        try:
            async with asyncio.timeout(self._bounds.connect_timeout_s):
                await self._writer.wait_closed()
        except OSError:  # lost, or out of time: either way there is no more to part from
            self._abort()

    def _abort(self) -> None:
        self._writer.transport.abort()
