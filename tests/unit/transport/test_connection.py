"""One suite over both kinds of connection, and a protocol driven over each.

Every test says whose fault a failure is: `UsageError` ours, `PeerError` theirs,
`TransportError` the network's.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable

import numpy as np
import pytest

from veilrun.errors import (
    DecodeError,
    PeerError,
    TransportError,
    UsageError,
    VerificationError,
)
from veilrun.transport import streams
from veilrun.transport.connection import Bounds, Connection, Traffic
from veilrun.transport.memory import Faults, at, chance, pair
from veilrun.transport.rounds import Protocol, Round, drive, simulate
from veilrun.transport.tls import client_context, server_context
from veilrun.wire import fields
from veilrun.wire.fields import Fields
from veilrun.wire.tensors import Limits, Message, array_of, decode, encode

HOST = "127.0.0.1"
BOUNDS = Bounds(max_frame_bytes=8 * 2**20, connect_timeout_s=10)
HASTY = Bounds(receive_timeout_s=0.3)

Ends = tuple[Connection, Connection]
Connect = Callable[..., Awaitable[Ends]]


@contextlib.asynccontextmanager
async def over_tls(identity, bounds: Bounds) -> AsyncIterator[Ends]:
    """A connection over loopback; `left` is the client."""
    async with streams.listen(
        HOST, 0, context=server_context(identity), name_of=lambda *_: "left", bounds=bounds
    ) as listener:
        client = await streams.connect(
            HOST,
            listener.port,
            peer="right",
            context=client_context(identity.certificate_pem),
            bounds=bounds,
        )
        server = await listener.accept(timeout_s=10)
    async with client, server:  # they outlive the listener
        yield client, server


@pytest.fixture(params=["memory", "tls"])
async def connect(request, identity) -> AsyncIterator[Connect]:
    """Makes connected pairs of one kind and closes them after the test."""
    async with contextlib.AsyncExitStack() as stack:

        async def make(bounds: Bounds = BOUNDS) -> Ends:
            if request.param == "tls":
                return await stack.enter_async_context(over_tls(identity, bounds))
            ends = pair(bounds=bounds)
            for end in ends:
                await stack.enter_async_context(end)
            return ends

        yield make


# --- both kinds ---------------------------------------------------------------------------


async def test_frames_arrive_whole_in_order_and_counted(connect):
    left, right = await connect()
    assert (left.peer, right.peer) == ("right", "left")
    frames = [b"", b"x", bytes(range(256)) * 3, bytes(2**16), b"VRF\x01" * 5, b"y" * 3_000_000]

    async def send_all() -> None:
        for frame in frames:
            await left.send(frame)

    async def receive_all() -> list[bytes]:
        return [await right.receive() for _ in frames]

    received = (await asyncio.gather(receive_all(), send_all()))[0]
    assert received == frames
    n_frames, n_bytes = len(frames), sum(map(len, frames))
    assert left.traffic == Traffic(n_sent_frames=n_frames, sent_bytes=n_bytes)
    assert right.traffic == Traffic(n_received_frames=n_frames, received_bytes=n_bytes)


async def test_frames_of_concurrent_callers_do_not_mix(connect):
    left, right = await connect()
    frames = [bytes([i]) * 200_000 for i in range(8)]
    received = await asyncio.gather(
        *(right.receive() for _ in frames), *(left.send(frame) for frame in frames)
    )
    assert received[: len(frames)] == frames


async def test_what_was_sent_before_a_close_arrives_and_then_the_end(connect):
    left, right = await connect()
    await left.send(b"last words")
    await left.close()
    assert await right.receive() == b"last words"
    with pytest.raises(TransportError, match="left closed the connection"):
        await right.receive()
    with pytest.raises(TransportError, match="has ended: left closed"):
        await right.send(b"anybody there?")
    with pytest.raises(TransportError, match="has ended: left closed"):
        await right.receive()


async def test_sending_to_a_peer_that_left_fails_after_a_while(connect):
    left, right = await connect()
    await left.close()
    with pytest.raises(TransportError):
        for _ in range(100):
            await right.send(bytes(1000))
            await asyncio.sleep(0.01)


async def test_closing_twice_is_fine_and_using_it_afterwards_is_our_fault(connect):
    left, _ = await connect()
    await left.close()
    await left.close()
    for call in (left.receive(), left.send(b"x")):
        with pytest.raises(UsageError, match="closed"):
            await call


async def test_a_close_wakes_who_waits_for_a_frame(connect):
    left, _ = await connect()
    waiting = asyncio.create_task(left.receive())
    await asyncio.sleep(0.05)
    await left.close()
    with pytest.raises(TransportError):
        await waiting


async def test_a_silent_peer_is_the_networks_fault_and_ends_the_connection(connect):
    left, right = await connect(HASTY)
    with pytest.raises(TransportError, match=r"right sent no frame within 0\.3 s"):
        await left.receive()
    with pytest.raises(TransportError, match="has ended: right sent no frame"):
        await left.send(b"late")
    with pytest.raises(TransportError, match="left closed the connection"):
        await right.receive()


async def test_too_large_a_frame_is_our_fault_and_nothing_is_sent(connect):
    left, right = await connect(Bounds(max_frame_bytes=10))
    with pytest.raises(UsageError, match="11 bytes to right, the limit is 10"):
        await left.send(bytes(11))
    await left.send(bytes(10))
    assert await right.receive() == bytes(10)


async def test_a_cancelled_wait_ends_the_connection(connect):
    left, right = await connect()
    waiting = asyncio.create_task(left.receive())
    await asyncio.sleep(0.05)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    with pytest.raises(TransportError, match="has ended: CancelledError"):
        await left.receive()
    with pytest.raises(TransportError, match="left closed the connection"):
        await right.receive()


# --- a two-party protocol ---------------------------------------------------------------------

N_ROUNDS = 4
LIMITS = Limits(max_frame_bytes=2**24, max_tensors=1, max_fields=1)


def agree(value: int, peer: str, n_elements: int = 1000) -> Protocol[int]:
    """Sums both parties' arrays over several rounds; any change of a frame is noticed."""
    total = np.full(n_elements, value, dtype=np.uint64)
    for number in range(N_ROUNDS):
        digest = hashlib.sha256(total.tobytes()).digest()
        message = Message(f"agree.{number}", {"total": total}, {"digest": digest})
        inbox = yield Round({peer: encode(message)})
        answer = decode(inbox[peer], limits=LIMITS)
        fields.one_of(f"agree.{number}")(answer.kind, "kind")
        theirs = Fields(answer.tensors, "").take("total", array_of(np.uint64, n_elements))
        if answer.fields.get("digest") != hashlib.sha256(theirs.tobytes()).digest():
            raise VerificationError("the digest is another array's")
        total = total + theirs
    return int(total[0])


def both(n_elements: int = 1000) -> dict[str, Protocol[int]]:
    return {"left": agree(1, "right", n_elements), "right": agree(2, "left", n_elements)}


async def run_both(ends: Ends, n_elements: int = 1000) -> list[int]:
    """Each party with its own end; a party that fails closes it, as a program would."""

    async def party(protocol: Protocol[int], end: Connection) -> int:
        async with end:
            return await drive(protocol, {end.peer: end})

    left, right = both(n_elements).values()
    return await asyncio.gather(party(left, ends[0]), party(right, ends[1]))


async def test_a_protocol_gives_the_same_result_and_bytes_everywhere(connect):
    results, cost = simulate(both())
    assert results == {"left": 24, "right": 24}
    assert cost.n_rounds == N_ROUNDS
    ends = await connect()
    assert await run_both(ends) == [24, 24]
    for end in ends:
        half = cost.sent_bytes // 2
        assert end.traffic == Traffic(N_ROUNDS, half, N_ROUNDS, half)


async def test_two_parties_that_both_send_much_do_not_wait_for_one_another(connect):
    """8 MB each way at once: more than sockets and stream buffers hold."""
    ends = await connect(Bounds(max_frame_bytes=2**24, send_timeout_s=30, receive_timeout_s=30))
    assert await run_both(ends, n_elements=2**20) == [24, 24]


# --- memory: faults, delays, recording --------------------------------------------------------


@pytest.mark.parametrize(
    ("faults", "error"),
    [
        (Faults(drop=at(0)), DecodeError),  # the peer goes on, so its second comes first
        (Faults(drop=at(N_ROUNDS - 1)), TransportError),
        (Faults(truncate=at(1)), DecodeError),
        (Faults(duplicate=at(0)), DecodeError),
        (Faults(corrupt=at(3)), PeerError),
        (Faults(delay=at(0), delay_s=3.0), TransportError),
    ],
    ids=["drop", "drop the last", "truncate", "duplicate", "corrupt", "delay"],
)
async def test_each_fault_has_its_error(faults, error):
    with pytest.raises(error):
        await run_both(pair(faults={"left": faults}, bounds=Bounds(receive_timeout_s=1.0)))


@pytest.mark.parametrize("seed", range(25))
async def test_under_random_faults_the_result_is_right_or_an_error(seed):
    rare = chance(0.08)
    faults = Faults(seed=seed, drop=rare, corrupt=rare, truncate=rare, duplicate=rare)
    hasty = Bounds(receive_timeout_s=0.05)
    try:
        assert await run_both(pair(faults={"left": faults}, bounds=hasty)) == [24, 24]
    except (PeerError, TransportError):
        pass
