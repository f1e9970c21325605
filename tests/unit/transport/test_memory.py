"""What memory connections add: faults, delays, and a record of every frame."""

from __future__ import annotations

import asyncio
import random

from veilrun.transport.connection import Frame
from veilrun.transport.memory import Faults, Link, Recorder, at, chance, mesh, pair


def arrivals(faults: Faults, n_frames: int = 200) -> list[list[bytes]]:
    source = random.Random(faults.seed)
    return [faults.arrivals(number, bytes(8), source) for number in range(n_frames)]


def test_faults_do_what_they_say_and_only_that():
    assert arrivals(Faults()) == [[bytes(8)]] * 200
    assert arrivals(Faults(drop=at(1)), 3) == [[bytes(8)], [], [bytes(8)]]
    assert arrivals(Faults(duplicate=at(0)), 2) == [[bytes(8)] * 2, [bytes(8)]]
    for (frame,) in arrivals(Faults(corrupt=chance(1))):
        assert int.from_bytes(frame, "little").bit_count() == 1
    for (frame,) in arrivals(Faults(truncate=chance(1))):
        assert len(frame) < 8
    n_dropped = arrivals(Faults(drop=chance(0.3))).count([])
    assert 30 < n_dropped < 90  # 60 expected; 30 is more than four standard deviations
    assert arrivals(Faults(seed=1, corrupt=chance(0.5))) == arrivals(
        Faults(seed=1, corrupt=chance(0.5))
    )
    assert arrivals(Faults(seed=1, corrupt=chance(0.5))) != arrivals(
        Faults(seed=2, corrupt=chance(0.5))
    )


def test_faults_leave_empty_frames_alone():
    source = random.Random(0)
    assert Faults(corrupt=at(0), truncate=at(0)).arrivals(0, b"", source) == [b""]


async def test_latency_is_waited_for_once_per_frame_and_way():
    left, right = pair(link=Link(latency_s=0.02))
    loop = asyncio.get_running_loop()
    begin_s = loop.time()
    for _ in range(2):
        await left.send(b"there")
        await right.receive()
        await right.send(b"and back")
        await left.receive()
    assert loop.time() - begin_s >= 4 * 0.02


async def test_a_slow_link_carries_so_many_bytes_per_second():
    left, right = pair(link=Link(bytes_per_s=1e6))
    loop = asyncio.get_running_loop()
    begin_s = loop.time()
    for _ in range(3):
        await left.send(bytes(40_000))
    for _ in range(3):
        await right.receive()
    assert loop.time() - begin_s >= 0.12


async def test_a_late_frame_holds_up_those_behind_it():
    left, right = pair(faults={"left": Faults(delay=at(0), delay_s=0.1)})
    for frame in (b"late", b"next"):
        await left.send(frame)
    assert [await right.receive(), await right.receive()] == [b"late", b"next"]


async def test_the_recorder_sees_every_frame_in_order_as_it_was_sent():
    recorder = Recorder()
    left, right = pair("P1", "P2", watch=recorder, faults={"P1": Faults(drop=at(0))})
    await left.send(b"dropped on the way")
    await right.send(b"canary")
    await left.send(b"third")
    assert recorder.frames == [
        Frame("P1", "P2", b"dropped on the way"),
        Frame("P2", "P1", b"canary"),
        Frame("P1", "P2", b"third"),
    ]
    assert recorder.sent_bytes("P1", "P2") == len(b"dropped on the way") + len(b"third")
    assert any(b"canary" in one.content for one in recorder.frames)


def test_a_mesh_connects_everyone_with_everyone():
    connections = mesh(("P0", "P1", "P2"))
    assert {name: sorted(ends) for name, ends in connections.items()} == {
        "P0": ["P1", "P2"], "P1": ["P0", "P2"], "P2": ["P0", "P1"],
    }  # fmt: skip
    assert all(end.peer == peer for ends in connections.values() for peer, end in ends.items())
