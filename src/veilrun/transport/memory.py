"""Connections without a network: for tests, for the demo, and to feel a slow or bad network.

`pair` and `mesh` give connections that behave as TLS ones do: frames whole and in order,
queued frames still arrive after a close, a closed or silent peer is a `TransportError`. On
top, three values say what lies between the two ends:

* `Link`: latency and rate. Waits are real, no finer than the event loop's clock (about 1 ms).
* `Faults`: frames lost, late, damaged, cut short or sent twice. TLS hides what a network does
  to packets, so these are what a broken or hostile *peer* does.
* `Recorder`: every frame as it was sent, in order. Plaintext that must not leave a machine is
  looked for here.

Not covered: sending never waits for the receiver; queued frames are bounded by nothing.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, final

from veilrun.errors import TransportError
from veilrun.transport.connection import DEFAULT_BOUNDS, Bounds, Connection, Frame, Watch


@dataclass(frozen=True, slots=True)
class Link:
    """latency_s: one way. bytes_per_s: each way; a frame occupies the link for its length."""

    latency_s: float = 0.0
    bytes_per_s: float = math.inf


_DIRECT: Final = Link()

# The two networks that published costs of private inference are mostly quoted for.
LAN: Final = Link(latency_s=1e-3, bytes_per_s=3e9 / 8)
WAN: Final = Link(latency_s=10e-3, bytes_per_s=400e6 / 8)


@dataclass(frozen=True, slots=True)
class Hits:
    """Which frames of one direction a fault hits: those numbered so, from 0, and any by chance."""

    numbers: frozenset[int] = frozenset()
    probability: float = 0.0

    def includes(self, number: int, source: random.Random) -> bool:
        """Whether the fault hits this frame."""
        return number in self.numbers or source.random() < self.probability


def at(*numbers: int) -> Hits:
    """The frames numbered so; the first is 0."""
    return Hits(numbers=frozenset(numbers))


def chance(probability: float) -> Hits:
    """Each frame, with this probability."""
    return Hits(probability=probability)


_NONE: Final = Hits()


@dataclass(frozen=True, slots=True)
class Faults:
    """What happens to the frames of one direction. Several faults may hit the same frame.

    drop: never arrives. delay: arrives `delay_s` late, and all after it no earlier.
    corrupt: one bit is flipped. truncate: at least the last byte is missing.
    duplicate: arrives twice.
    seed: decides every chance, which bit and which length; same seed, same faults.
    """

    seed: int = 0
    drop: Hits = _NONE
    delay: Hits = _NONE
    delay_s: float = 0.0
    corrupt: Hits = _NONE
    truncate: Hits = _NONE
    duplicate: Hits = _NONE

    def arrivals(self, number: int, frame: bytes, source: random.Random) -> list[bytes]:
        """What arrives in place of frame `number`."""
        if self.drop.includes(number, source):
            return []
        if self.corrupt.includes(number, source) and frame:
            bit = source.randrange(8 * len(frame))
            damaged = bytearray(frame)
            damaged[bit // 8] ^= 1 << bit % 8
            frame = bytes(damaged)
        if self.truncate.includes(number, source) and frame:
            frame = frame[: source.randrange(len(frame))]
        return [frame] * (2 if self.duplicate.includes(number, source) else 1)


@final
@dataclass(slots=True)
class Recorder:
    """Keeps every frame it is shown; pass it as `watch`."""

    frames: list[Frame] = field(default_factory=list)

    def __call__(self, frame: Frame) -> None:
        self.frames.append(frame)

    def sent_bytes(self, sender: str, receiver: str) -> int:
        """Bytes that went one way between two parties."""
        ends = (sender, receiver)
        return sum(len(one.content) for one in self.frames if (one.sender, one.receiver) == ends)


def pair(
    left: str = "left",
    right: str = "right",
    *,
    link: Link = _DIRECT,
    faults: Mapping[str, Faults] | None = None,
    watch: Watch | None = None,
    bounds: Bounds = DEFAULT_BOUNDS,
) -> tuple[Connection, Connection]:
    """Two ends of one connection: the one `left` holds, whose peer is `right`, and the other.

    faults: by sender.
    """
    faults = faults or {}
    there = _Pipe(left, right, link, faults.get(left, Faults()), watch)
    back = _Pipe(right, left, link, faults.get(right, Faults()), watch)
    return MemoryConnection(there, back, bounds), MemoryConnection(back, there, bounds)


def mesh(
    names: Sequence[str],
    *,
    link: Link = _DIRECT,
    faults: Mapping[str, Faults] | None = None,
    watch: Watch | None = None,
    bounds: Bounds = DEFAULT_BOUNDS,
) -> dict[str, dict[str, Connection]]:
    """Each party's connections to all others, by party and by peer; see `pair`."""
    connections: dict[str, dict[str, Connection]] = {name: {} for name in names}
    for a, b in itertools.combinations(names, 2):
        ends = pair(a, b, link=link, faults=faults, watch=watch, bounds=bounds)
        connections[a][b], connections[b][a] = ends
    return connections


class _Pipe:
    """One direction: what is in flight, each frame with the time it is due; None is the end."""

    def __init__(
        self, sender: str, receiver: str, link: Link, faults: Faults, watch: Watch | None
    ) -> None:
        self.sender, self.receiver = sender, receiver
        self.is_ended = False
        self._link, self._faults, self._watch = link, faults, watch
        self._random = random.Random(faults.seed)  # noqa: S311 - faults, not secrets
        self._n_frames = 0
        self._free_at_s = 0.0
        self._in_flight: asyncio.Queue[tuple[float, bytes] | None] = asyncio.Queue()

    def put(self, frame: bytes) -> None:
        if self._watch is not None:
            self._watch(Frame(self.sender, self.receiver, frame))
        number, self._n_frames = self._n_frames, self._n_frames + 1
        is_late = self._faults.delay.includes(number, self._random)
        now_s = asyncio.get_running_loop().time()
        for content in self._faults.arrivals(number, frame, self._random):
            self._free_at_s = max(now_s, self._free_at_s) + len(content) / self._link.bytes_per_s
            due_s = self._free_at_s + self._link.latency_s + is_late * self._faults.delay_s
            self._in_flight.put_nowait((due_s, content))

    async def get(self) -> bytes | None:
        arrival = await self._in_flight.get()
        if arrival is None:
            return None
        due_s, content = arrival
        await asyncio.sleep(due_s - asyncio.get_running_loop().time())
        return content

    def end(self) -> None:
        self.is_ended = True
        self._in_flight.put_nowait(None)


@final
class MemoryConnection(Connection):
    """One end of a `pair`."""

    def __init__(self, outgoing: _Pipe, incoming: _Pipe, bounds: Bounds) -> None:
        super().__init__(outgoing.receiver, bounds)
        self._outgoing = outgoing
        self._incoming = incoming

    async def _send(self, frame: bytes) -> None:
        if self._outgoing.is_ended:
            raise TransportError(f"{self.peer} closed the connection")
        self._outgoing.put(frame)

    async def _receive(self) -> bytes:
        frame = await self._incoming.get()
        if frame is None:
            raise TransportError(f"{self.peer} closed the connection")
        return frame

    async def _close(self) -> None:
        self._abort()

    def _abort(self) -> None:
        # Both directions: the peer reads what is in flight and then the end, its sends fail,
        # and a `receive` of ours that still waits wakes up.
        self._outgoing.end()
        self._incoming.end()
