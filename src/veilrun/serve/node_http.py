"""HTTP to one node: pinned, bounded, and every fault given its name.

Invariant: what the node or the network does can only cause a `PeerError` or a `TransportError`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import aiohttp

from veilrun.errors import BusyError, PeerError, StallError, TransportError, VerificationError
from veilrun.serve.kit import IdCodec
from veilrun.serve.node_address import NodeAddress
from veilrun.serve.node_answers import printable, reported_error
from veilrun.wire.generate import MODELS_PATH
from veilrun.wire.manifest import NodeCard, decode_card

_CARD_BYTES: Final = 2**16
_FAREWELL_BYTES: Final = 2**12
_ERROR_BYTES: Final = 2**14
_FAREWELL_S: Final = 1.0
_UNAVAILABLE: Final = (502, 503, 504)
_HEADERS: Final = {"Content-Type": "application/json", "Accept-Encoding": "identity"}


@dataclass(frozen=True, slots=True)
class NodeTimeouts:
    """connect_s: to reach the node. card_s: for the node's card. stall_s: without a new token
    in a stream, waiting in the node's queue included. answer_s: for an answer in one piece.
    """

    connect_s: float = 10.0
    card_s: float = 30.0
    stall_s: float = 120.0
    answer_s: float = 600.0


def verify_card(card: NodeCard, codec: IdCodec) -> None:
    """Raise VerificationError unless the node serves the checkpoint that the codec belongs to."""
    manifest = card.manifest
    if manifest.fingerprint != codec.fingerprint:
        raise VerificationError(
            f"the node serves a checkpoint of another key or model: its fingerprint is "
            f"{manifest.fingerprint}, expected {codec.fingerprint}"
        )
    if manifest.vocab_size != codec.vocab_size:
        raise VerificationError(
            f"the node's vocabulary has {manifest.vocab_size} ids, expected {codec.vocab_size}"
        )


def open_session(
    address: NodeAddress, pin: aiohttp.Fingerprint | None = None
) -> aiohttp.ClientSession:
    """A pool of connections to one node: pinned, without cookies, redirects or the
    environment's proxies. pin: the address's own, where somebody looks on as it is compared.
    """
    if pin is None and address.pin is not None:
        pin = aiohttp.Fingerprint(address.pin)
    key = {} if address.api_key is None else {"Authorization": f"Bearer {address.api_key}"}
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=pin or True, limit=0),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers=_HEADERS | key,
        auto_decompress=False,
    )


async def get_card(
    session: aiohttp.ClientSession, address: NodeAddress, timeouts: NodeTimeouts
) -> NodeCard:
    """What the node says of itself; not yet compared with anything."""
    limit = aiohttp.ClientTimeout(sock_connect=timeouts.connect_s, total=timeouts.card_s)
    with network_faults(timeouts.card_s):
        url = address.url + MODELS_PATH
        async with session.get(url, timeout=limit, allow_redirects=False) as response:
            await check_status(response)
            return decode_card(await read_body(response, _CARD_BYTES))


async def check_status(response: aiohttp.ClientResponse) -> None:
    """Raise what a status other than 200 means."""
    if response.status == 200:
        if "Content-Encoding" in response.headers:
            raise PeerError("the node compresses its answer, which was not asked for")
        return
    if response.status == 429:
        wait = response.headers.get("Retry-After", "")
        wait_s = float(wait) if wait.isascii() and wait.isdigit() and len(wait) < 5 else 1.0
        raise BusyError("the node's queue is full", retry_after_s=wait_s)
    if response.status in _UNAVAILABLE:
        raise TransportError(f"the node is not available now: status {response.status}")
    raise PeerError(f"the node answered with status {response.status}: {await reason(response)}")


async def reason(response: aiohttp.ClientResponse) -> str:
    """Why the node refuses, in its words."""
    return reported_error(await response.content.read(_ERROR_BYTES))


async def read_body(response: aiohttp.ClientResponse, limit_bytes: int) -> bytes:
    """The whole body, if it is no longer than that."""
    body = bytearray()
    async for data in response.content.iter_any():
        body += data
        if len(body) > limit_bytes:
            raise PeerError(f"the node's answer is longer than {limit_bytes} bytes")
    return bytes(body)


async def hear_out(response: aiohttp.ClientResponse) -> None:
    """Read a finished stream to its end, so that its connection can serve the next request.

    The answer is complete: whatever happens now only decides whether the connection is kept.
    """
    n_bytes = 0
    try:
        async with asyncio.timeout(_FAREWELL_S):
            while n_bytes <= _FAREWELL_BYTES and (data := await response.content.readany()):
                n_bytes += len(data)
    except (TimeoutError, aiohttp.ClientError):
        return


@contextmanager
def network_faults(silence_s: float) -> Iterator[None]:
    """Say of each of aiohttp's errors whose fault it is. silence_s: the limit in force."""
    try:
        yield
    except aiohttp.ServerFingerprintMismatch as error:
        raise VerificationError(
            f"the node's certificate is sha256:{error.got.hex()}, "
            f"expected sha256:{error.expected.hex()}"
        ) from error
    except aiohttp.ConnectionTimeoutError as error:
        raise StallError("no connection to the node in time") from error
    except (aiohttp.ServerTimeoutError, TimeoutError) as error:
        raise StallError(f"nothing from the node for {silence_s:.0f} s") from error
    except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError) as error:
        raise TransportError(f"the connection to the node failed: {printable(error)}") from error
    except aiohttp.ClientError as error:
        raise PeerError(f"the node does not speak HTTP properly: {printable(error)}") from error
