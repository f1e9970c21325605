"""One inference at a party, from the agreement on what is computed to the last frame.

    hello     both say version, model, run, profile, serial and length; any difference ends it
    prepare   material is read, checked and taken apart; nothing was sent that it hides
    use       both write the serial into their ledgers
    go        P1 says so; the clock starts
    run       the embedding question, where the embedding is secret; then the network

Invariant: no opening leaves a party before the peer's hello was checked and the ledger written.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import final

from veilrun.errors import VerificationError
from veilrun.mpc import inference, material, native, wire
from veilrun.mpc.arithmetic import Direct, Keys
from veilrun.mpc.inference import Answer
from veilrun.mpc.machines.party import PARTIES, Party
from veilrun.mpc.model.quantised import PublicModel
from veilrun.mpc.plan import Plan
from veilrun.mpc.prg import Stream
from veilrun.mpc.shares import Array
from veilrun.mpc.stock import Store
from veilrun.mpc.tape.tape import Tape
from veilrun.mpc.weights import Matrix
from veilrun.mpc.wire import Hello, Welcome
from veilrun.transport import channel
from veilrun.transport.channel import Channel
from veilrun.transport.rounds import Protocol


@final
@dataclass(frozen=True, slots=True)
class Prepared:
    """All that a party needs of one inference. start: its part, from its share of the entry.
    n_bytes: of its material.
    """

    serial: int
    n_tokens: int
    peer: str
    start: Callable[[Array], Protocol[Answer | None]]
    n_bytes: int


@final
@dataclass(frozen=True, slots=True, eq=False)
class Ran:
    """What came of it, and what it took of this party.

    n_rounds: frames from the peer. online_bytes: of frames, both ways, between the parties.
    embedding_bytes: of the question before, likewise, all that this party sent and received.
    start_s: on `time.perf_counter`.
    """

    answer: Answer | None
    n_rounds: int
    online_bytes: int
    embedding_bytes: int
    start_s: float
    online_s: float
    cpu_s: float


@final
class Computer:
    """A party's half of the model, ready for any number of inferences."""

    def __init__(
        self,
        store: Store,
        public: PublicModel,
        matrices: Mapping[str, Matrix],
        n_threads: int,
    ) -> None:
        self._store = store
        self._public = public
        self._matrices = matrices
        self._n_threads = n_threads
        self._plans: dict[int, Plan] = {}
        self._tapes: dict[int, Tape] = {}
        self._index = 0 if store.role == "P1" else 1
        if native.KERNEL is not None:
            native.KERNEL.keep_memory()

    def hello(self, serial: int, n_tokens: int) -> Hello:
        """What this party says that it is about to compute."""
        welcome, profile = self._store.welcome, self._public.profile.name
        return Hello(
            wire.VERSION, self._store.role, welcome.digest, welcome.run, profile, serial, n_tokens
        )

    def check_hello(self, theirs: Hello, serial: int, n_tokens: int) -> None:
        """Raise VerificationError unless the peer is about to compute the same."""
        mine = self.hello(serial, n_tokens)
        peer = "P2" if self._index == 0 else "P1"
        pairs: dict[str, tuple[object, object]] = {
            "version of the protocol": (mine.version, theirs.version),
            "role": (peer, theirs.role),
            "model": (mine.digest, theirs.digest),
            "run": (mine.run, theirs.run),
            "profile": (mine.profile, theirs.profile),
            "serial": (mine.serial, theirs.serial),
            "number of tokens": (mine.n_tokens, theirs.n_tokens),
        }
        for what, (expected, found) in pairs.items():
            if expected != found:
                raise VerificationError(
                    f"{peer} is about to compute something else: {what} is {_shown(found)} "
                    f"there and {_shown(expected)} here; a party that met the dealer before its "
                    "last change must be started again"
                )

    def prepare(self, serial: int, n_tokens: int) -> Prepared:
        """Read, check and take apart the material.

        Raises:
            RefusedError: the serial was used.
            DamagedError: the material is damaged, or of something else.
            DecodeError: it is not what the dealer sends for this length.
        """
        dealt = self._store.read(str(serial), n_tokens)
        if n_tokens not in self._plans:
            self._plans[n_tokens] = inference.plan(self._public, n_tokens)
        plan = self._plans[n_tokens]
        stream = stream_of(self._store.welcome.key, serial, n_tokens)
        halves = material.halves(plan, self._index, stream, dealt)
        start = self._part(plan, n_tokens, halves, tweak(self._store.welcome, serial))
        return Prepared(serial, n_tokens, PARTIES[1 - self._index], start, len(dealt))

    def _part(
        self, plan: Plan, n_tokens: int, halves: Iterable[Array | Keys], tweak: bytes
    ) -> Callable[[Array], Protocol[Answer | None]]:
        """From a tape, where there is a kernel to run it."""
        kernel, index, public = native.KERNEL, self._index, self._public
        if kernel is None or not kernel.has_aes:
            arithmetic = Direct(self._n_threads)
            party = Party(
                index, self._matrices, public.tables, halves, tweak, arithmetic=arithmetic
            )
            return partial(inference.run, public, party)
        if n_tokens not in self._tapes:
            self._tapes[n_tokens] = inference.record(
                public, plan, index, self._matrices, n_tokens, kernel, self._n_threads
            )
        tape = self._tapes[n_tokens]
        return partial(inference.play, public, tape, tape.load(halves, tweak))

    def run(
        self, prepared: Prepared, entry: Protocol[Array], channels: Mapping[str, Channel]
    ) -> Ran:
        """Compute. Only after `Store.use`.

        Raises:
            PeerError, TransportError: the peer misbehaves or is lost.
        """
        link = channels[prepared.peer]
        start_s, start_cpu_s = time.perf_counter(), time.process_time()
        before = sum(_bytes(one) for one in channels.values())
        share = channel.run(entry, channels)
        asked = sum(_bytes(one) for one in channels.values()) - before
        before, n_before = _bytes(link), link.traffic.n_received_frames
        answer = channel.run(prepared.start(share), channels)
        return Ran(
            answer=answer,
            n_rounds=link.traffic.n_received_frames - n_before,
            online_bytes=_bytes(link) - before,
            embedding_bytes=asked,
            start_s=start_s,
            online_s=time.perf_counter() - start_s,
            cpu_s=time.process_time() - start_cpu_s,
        )


def stream_of(key: bytes, serial: int, n_tokens: int) -> Stream:
    """The halves that the dealer and the party with this key share for one inference.

    The length is in its label: a dealer that was put back from a backup, and deals a serial
    again at another length, must not hide other values under the same masks.
    """
    return Stream(key, f"inference {n_tokens}", serial)


def given(entry: Array) -> Protocol[Array]:
    """An entry that needs no question: a protocol without a round."""
    yield from ()
    return entry


def _shown(value: object) -> str:
    return value.hex()[:16] if isinstance(value, bytes) else str(value)


def tweak(welcome: Welcome, serial: int) -> bytes:
    """The inference's own 16 public bytes, see `inference.tweak_of`."""
    return inference.tweak_of(welcome.digest + welcome.run, serial)


def _bytes(link: Channel) -> int:
    traffic = link.traffic
    return traffic.sent_bytes + traffic.received_bytes
