"""Protocols without I/O, and the two ways to run one: over connections, or all in a process.

A protocol is a generator: one party's part of a computation. It yields a `Round` and is sent
its inbox, peer -> frame; what it returns is the party's result. It owns no socket or clock,
so the same code runs in a test, over TLS, and in a cost table:

    def reveal(share: Ring, peer: str) -> Protocol[Ring]:
        inbox = yield Round({peer: share.tobytes()})
        return share + ring_from(inbox[peer], share.shape)

Cost is counted here and nowhere else. n_rounds is the longest chain of messages each of which
waited for the one before, so where all parties send and wait in step, one yield is one round,
and what a dealer sends ahead costs one round however many frames it is.

Not covered: frames are handed on as they came. A protocol checks what it takes out of its
inbox, and raises `DecodeError` or `VerificationError` for what does not fit.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Collection, Coroutine, Generator, Iterable, Mapping, Set
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from veilrun.errors import UsageError
from veilrun.transport.connection import Connection, Frame, Watch

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Round:
    """One exchange of one party.

    outgoing: peer -> the frame for it. An empty frame is a message too.
    awaited: the peers that owe this party a frame before it can go on; None: those it sends
        to. `Round({}, awaited={"P0"})` only waits, `Round({"P2": table}, awaited=frozenset())`
        only sends.
    """

    outgoing: Mapping[str, bytes]
    awaited: Set[str] | None = None

    @property
    def senders(self) -> list[str]:
        """The peers whose frames make up the inbox, in the inbox's order."""
        return sorted(self.outgoing if self.awaited is None else self.awaited)


Inbox = Mapping[str, bytes]
Protocol = Generator[Round, Inbox, T]


@dataclass(frozen=True, slots=True)
class Cost:
    """What a protocol takes of the network.

    n_rounds: messages that wait for one another; each takes the network's latency.
    sent_bytes: frames of all parties together.

    `a + b`: first a, then b.
    """

    n_rounds: int = 0
    sent_bytes: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.n_rounds + other.n_rounds, self.sent_bytes + other.sent_bytes)


# --- one party, over the network ----------------------------------------------------------


async def drive(protocol: Protocol[T], connections: Mapping[str, Connection]) -> T:
    """Run one party; `connections` go by the names the protocol calls its peers.

    The caller owns the connections and closes them; after a failure they are of no more use.

    Raises:
        UsageError: the protocol names a peer that there is no connection to.
        PeerError, TransportError: from a connection; whatever the protocol itself raises.
    """
    try:
        round_ = next(protocol)
        while True:
            round_ = protocol.send(await _exchange(round_, connections))
    except StopIteration as end:
        result: T = end.value
        return result
    finally:
        protocol.close()


async def _exchange(round_: Round, connections: Mapping[str, Connection]) -> Inbox:
    senders = round_.senders
    check_known((*round_.outgoing, *senders), connections)
    # Both directions at once: two parties that each first send more than the network's
    # buffers hold would wait for one another for ever.
    frames = await _all(
        *(connections[peer].receive() for peer in senders),
        *(connections[peer].send(frame) for peer, frame in round_.outgoing.items()),
    )
    return dict(zip(senders, frames[: len(senders)], strict=True))


async def _all(*calls: Coroutine[Any, Any, Any]) -> list[Any]:
    """The calls' results; the first failure ends the others and is raised as it is."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


def check_known(peers: Iterable[str], known: Collection[str]) -> None:
    """Raises UsageError where a protocol names a peer that there is no way to."""
    unknown = sorted(set(peers) - set(known))
    if unknown:
        raise UsageError(f"no such peer: {', '.join(unknown)}; known: {', '.join(sorted(known))}")


# --- all parties, in this process ---------------------------------------------------------


def simulate(
    protocols: Mapping[str, Protocol[T]], *, watch: Watch | None = None
) -> tuple[dict[str, T], Cost]:
    """Run every party to its end: the results by party, and what it cost.

    watch: sees each frame as it is sent.

    Raises:
        UsageError: the protocols do not fit together: a peer that is not there, parties that
            wait for one another, a frame that nobody takes.
        Whatever a protocol raises.
    """
    simulation = _Simulation(protocols, watch)
    try:
        return simulation.run()
    finally:
        for protocol in protocols.values():
            protocol.close()


class _Simulation(Generic[T]):
    """Parties by name, and per ordered pair of them the frames sent and not yet taken.

    A party's depth is the length of the longest chain of messages that led to where it is; a
    frame carries its sender's depth plus one.
    """

    def __init__(self, protocols: Mapping[str, Protocol[T]], watch: Watch | None) -> None:
        self._protocols = protocols
        self._watch = watch
        self._links: defaultdict[tuple[str, str], deque[tuple[int, bytes]]] = defaultdict(deque)
        self._depth = dict.fromkeys(protocols, 0)
        self._waiting: dict[str, Round] = {}
        self._results: dict[str, T] = {}
        self._sent_bytes = 0

    def run(self) -> tuple[dict[str, T], Cost]:
        for name in self._protocols:
            self._resume(name, None)
        while self._waiting:
            ready = [name for name in self._waiting if self._has_inbox(name)]
            if not ready:
                raise UsageError(f"parties wait for one another: {self._describe_waits()}")
            for name in ready:
                self._resume(name, self._take_inbox(name))
        left = sorted(f"{a} to {b}" for (a, b), frames in self._links.items() if frames)
        if left:
            raise UsageError(f"frames that nobody took: {', '.join(left)}")
        results = {name: self._results[name] for name in self._protocols}
        return results, Cost(max(self._depth.values(), default=0), self._sent_bytes)

    def _resume(self, name: str, inbox: Inbox | None) -> None:
        protocol = self._protocols[name]
        try:
            round_ = next(protocol) if inbox is None else protocol.send(inbox)
        except StopIteration as end:
            self._waiting.pop(name, None)
            self._results[name] = end.value
            return
        check_known((*round_.outgoing, *round_.senders), self._protocols.keys() - {name})
        self._waiting[name] = round_
        for peer, content in round_.outgoing.items():
            self._links[name, peer].append((self._depth[name] + 1, content))
            self._sent_bytes += len(content)
            if self._watch is not None:
                self._watch(Frame(name, peer, content))

    def _has_inbox(self, name: str) -> bool:
        return all(self._links[peer, name] for peer in self._waiting[name].senders)

    def _take_inbox(self, name: str) -> Inbox:
        inbox = {}
        for peer in self._waiting[name].senders:
            depth, inbox[peer] = self._links[peer, name].popleft()
            self._depth[name] = max(self._depth[name], depth)
        return inbox

    def _describe_waits(self) -> str:
        return "; ".join(
            f"{name} for {peer}"
            for name, round_ in self._waiting.items()
            for peer in round_.senders
            if not self._links[peer, name]
        )
