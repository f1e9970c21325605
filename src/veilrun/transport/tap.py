"""A tap on the line to a node: what the node's operator sees once TLS has ended.

It listens with an identity of its own, passes every byte on over TLS to the real node, and
keeps a copy of both directions in the clear. For demonstrations and for tests that no
plaintext is in there; a proxy that pins the real node refuses it, as it should.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

_CHUNK_BYTES = 1 << 16


@dataclass(slots=True)
class Recording:
    """Every byte that went to the node and came from it, all connections in a row."""

    to_node: bytearray = field(default_factory=bytearray)
    from_node: bytearray = field(default_factory=bytearray)


@contextlib.asynccontextmanager
async def tap(
    own: ssl.SSLContext, node_host: str, node_port: int, node: ssl.SSLContext
) -> AsyncIterator[tuple[int, Recording]]:
    """Listen on a free loopback port; yield it and the recording, which goes on growing.

    own: server context to listen with. node: client context that trusts the node.
    """
    recording = Recording()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            node_reader, node_writer = await asyncio.open_connection(node_host, node_port, ssl=node)
        except OSError:
            writer.close()  # as a node that is down would
            return
        await asyncio.gather(
            _copy(reader, node_writer, recording.to_node),
            _copy(node_reader, writer, recording.from_node),
        )

    server = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=own)
    try:
        yield server.sockets[0].getsockname()[1], recording
    finally:
        server.close()


async def _copy(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, record: bytearray
) -> None:
    with contextlib.suppress(OSError):
        while chunk := await reader.read(_CHUNK_BYTES):
            record += chunk
            writer.write(chunk)
            await writer.drain()
    writer.close()
