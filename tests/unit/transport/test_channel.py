"""Channels over real sockets: what passes, and what a hostile or absent peer can do.

The other side is a thread, a stream in an event loop, or a socket that writes what it likes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import ssl
import struct
import threading
import time
import tracemalloc
from collections.abc import Iterator

import pytest
from meeting import HOST, calling, listening, pair, together

from veilrun.errors import (
    DecodeError,
    PeerError,
    TransportError,
    UsageError,
)
from veilrun.transport import channel, streams
from veilrun.transport.channel import Channel, exchange
from veilrun.transport.connection import Bounds, Traffic
from veilrun.transport.rounds import Protocol, Round, simulate
from veilrun.transport.tls import (
    client_context,
    server_context,
)

LIMITED = Bounds(max_frame_bytes=64 * 2**20)
HASTY = Bounds(max_frame_bytes=64 * 2**20, send_timeout_s=0.3, receive_timeout_s=0.3)
NONE: frozenset[str] = frozenset()


@contextlib.contextmanager
def raw_client(identity, bounds: Bounds = LIMITED) -> Iterator[tuple[ssl.SSLSocket, Channel]]:
    """A client that writes what it likes, and the channel that has to bear it."""
    context = client_context(identity.certificate_pem)
    with listening(identity, bounds, "rogue") as listener:
        plain = socket.create_connection((HOST, listener.port))
        rogue, server = together(lambda: context.wrap_socket(plain), lambda: listener.accept(10))
        with rogue, server:
            yield rogue, server


# --- what passes ---------------------------------------------------------------------------


@pytest.mark.parametrize("n_bytes", [0, 1, 2**14 - 8, 2**14 - 7, 100_000, 20_000_000])
def test_large_frames_cross_in_both_directions_at_once(identity, n_bytes):
    a, b = os.urandom(n_bytes), os.urandom(n_bytes)
    with pair(identity) as (left, right):
        inboxes = together(
            lambda: exchange({"right": left}, Round({"right": a})),
            lambda: exchange({"left": right}, Round({"left": b})),
        )
        assert inboxes == [{"right": b}, {"left": a}]
        assert {type(frame) for inbox in inboxes for frame in inbox.values()} == {bytes}
        assert left.traffic == right.traffic == Traffic(1, n_bytes, 1, n_bytes)


def test_frames_wait_in_order_until_they_are_asked_for(identity):
    frames = [bytes([i]) * (2 * i) ** 3 for i in range(20)]
    with pair(identity) as (left, right):
        for end in (left, right):  # else a round may wait for the other's delayed answer
            assert end._link.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        for frame in frames:
            left.send(frame)
        assert [right.receive() for _ in frames] == frames


def test_both_may_send_first_what_exceeds_the_networks_buffers(identity):
    frame = os.urandom(1_000_000)
    with pair(identity, Bounds(send_timeout_s=5)) as (left, right):
        for end in (left, right):
            for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                end._link.socket.setsockopt(socket.SOL_SOCKET, option, 2**15)

        def send_first(end: Channel) -> bytes:
            end.send(frame)
            return end.receive()

        assert together(lambda: send_first(left), lambda: send_first(right)) == [frame, frame]


@pytest.mark.parametrize("n_bytes", [60_000, 250_000, 1_000_000])
def test_a_round_may_exceed_the_networks_buffers(identity, n_bytes):
    frames = [os.urandom(n_bytes) for _ in range(6)]
    with pair(identity, Bounds(send_timeout_s=5, receive_timeout_s=5)) as (left, right):
        for end in (left, right):
            for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                end._link.socket.setsockopt(socket.SOL_SOCKET, option, 2**14)

        def swap_all(end: Channel) -> list[bytes]:
            return [exchange({end.peer: end}, Round({end.peer: one}))[end.peer] for one in frames]

        assert together(lambda: swap_all(left), lambda: swap_all(right)) == [frames, frames]
        assert left.traffic == right.traffic == Traffic(6, 6 * n_bytes, 6, 6 * n_bytes)


async def test_a_channel_and_a_stream_understand_each_other(identity):
    frames = [b"", b"x", os.urandom(100_000), os.urandom(3_000_000)]
    context = client_context(identity.certificate_pem)

    async def echo(stream) -> None:
        async with stream:
            for _ in frames:
                await stream.send(await stream.receive())

    def ask(end: Channel) -> list[bytes]:
        with end:
            return [exchange({end.peer: end}, Round({end.peer: one}))[end.peer] for one in frames]

    async with streams.listen(HOST, 0, context=server_context(identity)) as server:
        client = await asyncio.to_thread(calling, identity, server.port)
        stream = await server.accept(10)
        assert (await asyncio.gather(asyncio.to_thread(ask, client), echo(stream)))[0] == frames
    with listening(identity) as listener:
        accepted = asyncio.create_task(asyncio.to_thread(listener.accept, 10))
        stream = await streams.connect(HOST, listener.port, peer="P2", context=context)
        answers = asyncio.to_thread(ask, await accepted)
        assert (await asyncio.gather(answers, echo(stream)))[0] == frames


def test_close_delivers_what_was_sent_whatever_was_not_read(identity):
    frame = os.urandom(8_000_000)
    with pair(identity) as (left, right):
        right._link.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**17)

        def send_and_part() -> None:
            left.send(frame)
            left.close()
            left.close()

        def read_late() -> bytes:
            right.send(bytes(2_000_000))
            time.sleep(0.2)
            return right.receive()

        assert together(send_and_part, read_late)[1] == frame
        with pytest.raises(TransportError, match="left closed the connection before a frame"):
            right.receive()


def add_up(name: str, value: int, peers: tuple[str, ...], n_rounds: int) -> Protocol[int]:
    """All add up in step; then A sends on without waiting, and B waits without sending."""
    for _ in range(n_rounds):
        inbox = yield Round({peer: value.to_bytes(40, "little") for peer in peers})
        value += sum(int.from_bytes(inbox[peer], "little") for peer in peers)
    if name == "A":
        yield Round({"B": b"ahead"}, awaited=NONE)
    elif name == "B":
        value += len((yield Round({}, awaited={"A"}))["A"])
    return value


def test_run_gives_what_simulate_gives(identity):
    names = ("A", "B", "C")

    def parties() -> dict[str, Protocol[int]]:
        peers = {name: tuple(one for one in names if one != name) for name in names}
        return {name: add_up(name, i + 1, peers[name], 50) for i, name in enumerate(names)}

    with contextlib.ExitStack() as stack:
        ends: dict[str, dict[str, Channel]] = {name: {} for name in names}
        for a, b in (("A", "B"), ("A", "C"), ("B", "C")):
            ends[a][b], ends[b][a] = stack.enter_context(pair(identity))
        protocols = parties()
        results = together(*(lambda n=n: channel.run(protocols[n], ends[n]) for n in names))
    assert dict(zip(names, results, strict=True)) == simulate(parties())[0]


def test_run_closes_a_protocol_that_fails(identity):
    closed = []

    def protocol() -> Protocol[None]:
        try:
            yield Round({"nobody": b""})
        finally:
            closed.append(True)

    with pair(identity) as (left, _):
        with pytest.raises(UsageError, match="no such peer: nobody; known: right"):
            channel.run(failing := protocol(), {"right": left})
    assert failing.gi_frame is None
    assert closed == [True]


def test_our_own_mistakes_do_no_harm(identity):
    with pair(identity, Bounds(max_frame_bytes=100)) as (left, right):
        with pytest.raises(UsageError, match="frame of 101 bytes to right, the limit is 100"):
            left.send(bytes(101))
        left.send(bytes(100))
        assert right.receive() == bytes(100)
        left.close()
        with pytest.raises(UsageError, match="this side has closed the connection to right"):
            left.receive()


# --- what a peer may send ------------------------------------------------------------------


def header(n_bytes: int) -> bytes:
    """The start of a frame, by the format's text."""
    return b"VRF\x01" + struct.pack("<I", n_bytes)


@pytest.mark.parametrize(
    ("sent", "error", "complaint"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", DecodeError, "rogue does not send frames of version 1"),
        (b"VRF\x02" + bytes(4), DecodeError, "version 1"),
        (header(2**32 - 1), PeerError, "rogue sends a frame of 4294967295 bytes, the limit is"),
        (header(LIMITED.max_frame_bytes + 1), PeerError, "67108865 bytes, the limit is 67108864"),
        (b"VRF\x01\x00", TransportError, "closed the connection before a frame"),
        (header(100), TransportError, "closed the connection within a frame"),
        (header(99_999) + bytes(99_998), TransportError, "closed the connection within a frame"),
        (b"", TransportError, "closed the connection before a frame"),
    ],
)
@pytest.mark.parametrize("says_goodbye", [True, False])
def test_what_is_no_frame_has_its_error(identity, sent, error, complaint, says_goodbye):
    with raw_client(identity) as (rogue, server):
        rogue.sendall(sent)
        if says_goodbye:
            rogue.settimeout(0.05)
            with contextlib.suppress(OSError):  # it is not answered
                rogue.unwrap()
        rogue.shutdown(socket.SHUT_WR)
        with pytest.raises(error, match=complaint) as caught:
            server.receive()
        assert type(caught.value) is error
        for call in (server.receive, lambda: server.send(b"")):
            with pytest.raises(TransportError, match=f"to rogue has ended: .*{complaint}"):
                call()
        assert server.traffic == Traffic()


def test_bytes_that_are_not_tls_are_the_networks_fault(identity):
    with raw_client(identity) as (rogue, server):
        rogue.sendall(header(10))
        with socket.socket(fileno=os.dup(rogue.fileno())) as below:
            below.sendall(b"\x17\x03\x03\x00\x20" + bytes(32))
        with pytest.raises(TransportError, match="lost rogue: "):
            server.receive()


def test_one_record_may_hold_many_frames(identity):
    frames = [b"abc", b"", b"de", bytes(9_000), b"f", b"g"]
    with raw_client(identity) as (rogue, server):
        rogue.sendall(b"".join(header(len(one)) + one for one in frames))
        for one in frames[::2]:  # in turn: sending too, and only receiving
            assert exchange({"rogue": server}, Round({"rogue": b"x"})) == {"rogue": one}
            assert server.receive() == frames[frames.index(one) + 1]
        assert server.traffic == Traffic(3, 3, 6, sum(map(len, frames)))


@pytest.mark.parametrize("sent", [b"", header(10), header(10) + bytes(9), header(99_999)])
def test_a_round_without_an_answer_ends_in_time(identity, sent):
    with raw_client(identity, HASTY) as (rogue, server):
        rogue.sendall(sent)
        begin_s = time.monotonic()
        with pytest.raises(TransportError, match=r"rogue sent no frame within 0\.3 s"):
            exchange({"rogue": server}, Round({"rogue": b"x"}))
        assert 0.29 < time.monotonic() - begin_s < 3
        with pytest.raises(TransportError, match="to rogue has ended: rogue sent no frame"):
            server.send(b"")


@pytest.mark.parametrize("pause_s", [10, 0.02])
def test_a_frame_that_stalls_or_trickles_is_the_networks_fault(identity, pause_s):
    done = threading.Event()
    with raw_client(identity, HASTY) as (rogue, server):
        rogue.sendall(header(1000))

        def trickle() -> None:
            with contextlib.suppress(OSError):
                while not done.wait(pause_s):
                    rogue.sendall(b"x")

        def receive() -> float:
            begin_s = time.monotonic()
            with pytest.raises(TransportError, match=r"rogue sent no frame within 0\.3 s"):
                server.receive()
            done.set()
            return time.monotonic() - begin_s

        assert 0.29 < together(receive, trickle)[0] < 3


def test_a_peer_that_announces_much_costs_no_memory(identity):
    with raw_client(identity, HASTY) as (rogue, server):
        rogue.sendall(header(HASTY.max_frame_bytes) + bytes(1000))
        tracemalloc.start()
        try:
            with pytest.raises(TransportError, match="sent no frame"):
                server.receive()
            peak_bytes = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak_bytes < 2**20 < HASTY.max_frame_bytes


def test_a_peer_that_takes_nothing_is_the_networks_fault(identity):
    with raw_client(identity, HASTY) as (_, server):
        with pytest.raises(TransportError, match=r"rogue took no frame within 0\.3 s"):
            server.send(bytes(48 * 2**20))


def test_a_failed_round_ends_all_its_channels(identity):
    with raw_client(identity, HASTY) as (_, silent), pair(identity, HASTY) as (left, right):
        right.send(b"y")
        with pytest.raises(TransportError, match="rogue sent no frame"):
            exchange({"rogue": silent, "right": left}, Round({"right": b"x"}, {"rogue", "right"}))
        with pytest.raises(TransportError, match="to right has ended: rogue sent no frame"):
            left.send(b"x")
        assert right.receive() == b"x"
        with pytest.raises(TransportError, match=r"left closed|lost left"):
            right.receive()


@pytest.fixture
def interrupted() -> Iterator[None]:
    """Somebody presses Ctrl-C soon."""
    main = threading.main_thread().ident or 0
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's job ignores it
    timer = threading.Timer(0.2, signal.pthread_kill, (main, signal.SIGINT))
    timer.start()
    yield
    timer.join()
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("outgoing", [{}, {"right": b"x"}])
def test_an_interrupted_frame_is_the_last(identity, interrupted, outgoing):
    with pair(identity) as (left, right):
        right._link.socket.sendall(b"\x17")  # the beginning of a record
        with pytest.raises(KeyboardInterrupt):
            exchange({"right": left}, Round(outgoing, {"right"} if not outgoing else None))
        with pytest.raises(TransportError, match="has ended: KeyboardInterrupt"):
            left.receive()


def test_an_interrupted_listener_goes_on(identity, interrupted):
    with listening(identity) as listener:
        with pytest.raises(KeyboardInterrupt):
            listener.accept()
        client, server = together(
            lambda: calling(identity, listener.port), lambda: listener.accept(10)
        )
    client.close()
    server.close()
