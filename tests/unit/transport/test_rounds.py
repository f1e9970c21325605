"""Protocols run in one process: results, and a cost that is exact."""

from __future__ import annotations

import asyncio

import pytest

from veilrun.errors import DecodeError, TransportError, UsageError, VerificationError
from veilrun.transport.connection import Connection
from veilrun.transport.memory import Recorder, mesh, pair
from veilrun.transport.rounds import Cost, Protocol, Round, drive, simulate

NONE: frozenset[str] = frozenset()


def add_up(value: int, peers: tuple[str, ...]) -> Protocol[int]:
    """Every party tells its value to all others; one round, 8 bytes per ordered pair."""
    inbox = yield Round({peer: value.to_bytes(8, "little") for peer in peers})
    return value + sum(int.from_bytes(inbox[peer], "little") for peer in peers)


def chain(value: int, peer: str, n_rounds: int) -> Protocol[int]:
    """Each round doubles and swaps the value."""
    for _ in range(n_rounds):
        inbox = yield Round({peer: bytes([2 * value % 256])})
        value = inbox[peer][0]
    return value


def deal(frames: list[bytes], peer: str) -> Protocol[None]:
    """A dealer: sends ahead, waits for nobody."""
    for frame in frames:
        yield Round({peer: frame}, awaited=NONE)


def collect(n_frames: int, dealer: str) -> Protocol[bytes]:
    """The dealer's other side."""
    frames = []
    for _ in range(n_frames):
        inbox = yield Round({}, awaited={dealer})
        frames.append(inbox[dealer])
    return b"".join(frames)


def silent(value: int) -> Protocol[int]:
    """A protocol of no rounds."""
    return value
    yield Round({})


def three() -> dict[str, Protocol[int]]:
    names = ("P0", "P1", "P2")
    return {
        name: add_up(10**i, tuple(peer for peer in names if peer != name))
        for i, name in enumerate(names)
    }


def test_three_parties_add_up_in_one_round():
    results, cost = simulate(three())
    assert results == {"P0": 111, "P1": 111, "P2": 111}
    assert list(results) == ["P0", "P1", "P2"]
    assert cost == Cost(n_rounds=1, sent_bytes=3 * 2 * 8)


@pytest.mark.parametrize("n_rounds", [0, 1, 2, 15])
def test_one_yield_in_step_is_one_round(n_rounds):
    _, cost = simulate({"P1": chain(1, "P2", n_rounds), "P2": chain(2, "P1", n_rounds)})
    assert cost == Cost(n_rounds, 2 * n_rounds)


def test_what_a_dealer_sends_ahead_is_one_round():
    frames = [bytes(5), b"", bytes(7)]
    results, cost = simulate({"P0": deal(frames, "P2"), "P2": collect(3, "P0")})
    assert results == {"P0": None, "P2": bytes(12)}
    assert cost == Cost(n_rounds=1, sent_bytes=12)


def test_rounds_are_the_longest_chain_and_not_the_most_yields():
    """P0 deals to P2 while P1 and P2 exchange: 4 yields of P2, of which 3 wait in turn."""

    def p2() -> Protocol[None]:
        yield Round({}, awaited={"P0"})
        for _ in range(3):
            yield Round({"P1": b"x"})

    def p1() -> Protocol[None]:
        for _ in range(3):
            yield Round({"P2": b"x"})

    _, cost = simulate({"P0": deal([b"t"], "P2"), "P1": p1(), "P2": p2()})
    # P2 has the dealer's frame at depth 1 and sends at depth 1, so P1 ends at depth 4.
    assert cost == Cost(n_rounds=4, sent_bytes=7)

    def p2_in_step() -> Protocol[None]:
        yield Round({"P1": b"x"}, awaited={"P0", "P1"})
        for _ in range(2):
            yield Round({"P1": b"x"})

    _, cost = simulate({"P0": deal([b"t"], "P2"), "P1": p1(), "P2": p2_in_step()})
    assert cost == Cost(n_rounds=3, sent_bytes=7)


def test_a_frame_that_waited_long_takes_nobody_back():
    def p2() -> Protocol[None]:
        yield Round({"P1": b"x"})
        yield Round({"P1": b"x"})
        yield Round({}, awaited={"P0"})  # sent at the very start
        yield Round({"P1": b"x"}, awaited=NONE)

    def p1() -> Protocol[None]:
        for _ in range(2):
            yield Round({"P2": b"x"})
        yield Round({}, awaited={"P2"})

    _, cost = simulate({"P0": deal([b"t"], "P2"), "P1": p1(), "P2": p2()})
    assert cost == Cost(n_rounds=3, sent_bytes=6)


def test_parties_that_need_no_round_cost_nothing():
    assert simulate({"P1": silent(3)}) == ({"P1": 3}, Cost())
    assert simulate({}) == ({}, Cost())


def test_costs_add_up():
    assert sum([Cost(1, 10), Cost(2, 5)], Cost()) == Cost(3, 15)


def test_every_frame_is_seen_in_the_order_it_was_sent():
    recorder = Recorder()
    _, cost = simulate(three(), watch=recorder)
    assert [(one.sender, one.receiver) for one in recorder.frames] == [
        ("P0", "P1"), ("P0", "P2"), ("P1", "P0"), ("P1", "P2"), ("P2", "P0"), ("P2", "P1"),
    ]  # fmt: skip
    assert recorder.frames[2].content == (10).to_bytes(8, "little")
    assert sum(len(one.content) for one in recorder.frames) == cost.sent_bytes
    assert recorder.sent_bytes("P0", "P1") == 8


def waits_for(peer: str) -> Protocol[None]:
    yield Round({}, awaited={peer})


def sends_to(peer: str) -> Protocol[None]:
    yield Round({peer: b"x"}, awaited=NONE)


@pytest.mark.parametrize(
    ("protocols", "complaint"),
    [
        ({"P1": waits_for("P2"), "P2": waits_for("P1")}, "P1 for P2; P2 for P1"),
        ({"P1": waits_for("P2"), "P2": silent(1)}, "wait for one another: P1 for P2"),
        ({"P1": sends_to("P2"), "P2": silent(1)}, "nobody took: P1 to P2"),
        ({"P1": sends_to("P3"), "P2": silent(1)}, "no such peer: P3; known: P2"),
        ({"P1": sends_to("P1"), "P2": silent(1)}, "no such peer: P1; known: P2"),
        ({"P1": waits_for("P3"), "P2": silent(1)}, "no such peer: P3; known: P2"),
    ],
)
def test_protocols_that_do_not_fit_together_are_refused(protocols, complaint):
    with pytest.raises(UsageError, match=complaint):
        simulate(protocols)


def test_a_party_that_refuses_ends_the_others():
    cleaned = []

    def suspicious() -> Protocol[None]:
        yield Round({"P2": b"x"})
        raise VerificationError("the answer is wrong")

    def trusting() -> Protocol[None]:
        try:
            yield Round({"P1": b"x"})
            yield Round({"P1": b"y"})
        finally:
            cleaned.append("P2")

    protocols = {"P1": suspicious(), "P2": trusting()}
    with pytest.raises(VerificationError):
        simulate(protocols)
    assert cleaned == ["P2"]


# --- over connections -----------------------------------------------------------------------


async def drive_all(
    protocols: dict[str, Protocol[int]], connections: dict[str, dict[str, Connection]]
) -> dict[str, int]:
    results = await asyncio.gather(
        *(drive(protocols[name], connections[name]) for name in protocols)
    )
    return dict(zip(protocols, results, strict=True))


async def test_driven_parties_agree_with_simulated_ones_in_result_and_bytes():
    results, cost = simulate(three())
    connections = mesh(("P0", "P1", "P2"))
    assert await drive_all(three(), connections) == results
    ends = [one.traffic for ends in connections.values() for one in ends.values()]
    assert sum(one.sent_bytes for one in ends) == cost.sent_bytes
    assert sum(one.received_bytes for one in ends) == cost.sent_bytes
    assert {one.n_sent_frames for one in ends} == {1}


async def test_a_peer_without_a_connection_is_our_own_fault():
    here, _ = pair()
    with pytest.raises(UsageError, match="no such peer: right; known: left"):
        await drive(sends_to("right"), {"left": here})
    assert here.traffic.n_sent_frames == 0


async def test_a_failure_closes_the_protocol_and_is_raised_as_it_is():
    cleaned = []

    def careful() -> Protocol[None]:
        try:
            yield Round({"left": b"x"}, awaited={"right", "left"})
        finally:
            cleaned.append(True)

    left, far_left = pair("me", "left")
    right, far_right = pair("me", "right")
    await far_right.close()
    protocol = careful()
    async with asyncio.timeout(5):  # the other peer is silent and must not be waited for
        with pytest.raises(TransportError, match="right closed the connection"):
            await drive(protocol, {"left": left, "right": right})
    assert cleaned == [True]
    assert await far_left.receive() == b"x"
    with pytest.raises(TransportError, match="me closed"):
        await far_left.receive()


async def test_what_the_protocol_raises_comes_out():
    def strict() -> Protocol[None]:
        inbox = yield Round({"right": b""})
        raise DecodeError(f"{len(inbox['right'])} bytes, expected 4")

    here, there = pair()
    await there.send(b"abc")
    with pytest.raises(DecodeError, match="3 bytes, expected 4"):
        await drive(strict(), {"right": here})
