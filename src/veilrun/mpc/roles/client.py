"""P1, the client: has the text, asks the dealer for material, computes with the assistant.

    with Client(Path("mpc.toml"), Path("state")) as client:
        client.stock(16, 4)                      # ahead of time, where that is wanted
        print(client.classify("a fine film").label)

Invariants. A text leaves this machine in no form: its tokens are looked up here, or by a
question of which each server sees a random half. A serial is written into the ledger before
anything of it is sent, and is never used again, whatever happens then.

What the others learn: the number of tokens, and when.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self, final

import numpy as np
import numpy.typing as npt

from veilrun.errors import DamagedError, PeerError, SpentError, UsageError, VerificationError
from veilrun.mpc import embedding, network_file, weight_shares, wire
from veilrun.mpc.inference import Answer
from veilrun.mpc.model.entry import Tokenizer, check_ids, client_entry
from veilrun.mpc.model.quantised import Integers
from veilrun.mpc.roles import links
from veilrun.mpc.roles.joining import join
from veilrun.mpc.roles.online import Computer, Prepared, Ran, given, tweak
from veilrun.mpc.shares import Array, dtype_of, wrap
from veilrun.transport.channel import Channel
from veilrun.transport.connection import Bounds
from veilrun.transport.rounds import Protocol

_IDLE_S: Final = 20.0
"""An older connection is opened again: the servers hang up on who says nothing."""

_SHORT_PATIENCE_S: Final = 5.0
"""With parties that were there before."""


@final
@dataclass(frozen=True, slots=True)
class Cost:
    """What one inference took.

    offline_bytes: material, to both parties. online_bytes: openings, both ways. embedding_bytes:
    of the question about embedding rows, where there is one. deal_s, deal_cpu_s: at the dealer;
    0 where it was dealt before this client asked. fetch_s: dealing and fetching that this call
    waited for. prepare_s: taking material apart. online_s: the slower party's, first to last
    frame. cpu_s, assistant_cpu_s: of both parties, online.
    """

    n_tokens: int
    n_rounds: int
    offline_bytes: int
    online_bytes: int
    embedding_bytes: int
    deal_s: float
    deal_cpu_s: float
    fetch_s: float
    prepare_s: float
    online_s: float
    cpu_s: float
    assistant_cpu_s: float


@final
@dataclass(frozen=True, slots=True, eq=False)
class Classification:
    """label: the likeliest. probabilities: by label. logits: in the labels' order.

    integers: the logits as the protocol gives them. flagged: table -> how many values came near
    the end of its window; empty is as it should be. serial: of the inference.
    """

    label: str
    probabilities: Mapping[str, float]
    logits: npt.NDArray[np.float64]
    integers: npt.NDArray[np.int64]
    flagged: Mapping[str, int]
    cost: Cost
    serial: int


@final
@dataclass(frozen=True, slots=True, eq=False)
class Embedding:
    """vector: the mean of the last hidden states over all tokens. The rest: see above."""

    vector: npt.NDArray[np.float64]
    integers: npt.NDArray[np.int64]
    flagged: Mapping[str, int]
    cost: Cost
    serial: int


@final
class Client:
    """The client of one network. Closes at the end of a `with` block; one thread at a time."""

    def __init__(
        self,
        network: Path,
        state: Path,
        *,
        n_threads: int | None = None,
        patience_s: float = links.DEFAULT_PATIENCE_S,
        bounds: Bounds = links.BOUNDS,
    ) -> None:
        """Meet the dealer, and load this party's shares.

        network: the network file. state: this party's folder, see `stock`. n_threads: of matrix
        products; default: one per core. patience_s: for parties that have not started yet.

        Raises:
            UsageError: the network file, or the certificate in it, is not right.
            TransportError: the dealer cannot be reached, and this party has nothing yet.
            PeerError, RefusedError, StorageError: see `joining.join`.
        """
        self._exit = contextlib.ExitStack()
        self._patience_s = {"P0": min(patience_s, _SHORT_PATIENCE_S), "P2": patience_s}
        self._links: dict[str, Channel] = {}
        self._used_s: dict[str, float] = {}
        self._dealt: dict[int, wire.Dealt] = {}
        with contextlib.ExitStack() as undo:
            undo.push(self._exit)
            self._seat = self._exit.enter_context(
                links.seated("P1", network_file.load(network), state, bounds)
            )
            self._store, setup = join(self._seat, patience_s)
            self._part = weight_shares.decode_client(setup)
            self.public = self._part.public
            key, n_threads = self._store.welcome.key, n_threads or os.cpu_count() or 1
            matrices = weight_shares.first_matrices(key, self.public, n_threads)
            self._computer = Computer(self._store, self.public, matrices, n_threads)
            undo.pop_all()
        self._tokenizer: Tokenizer | None = None

    def __repr__(self) -> str:
        return f"Client({self._store!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Part from the others; a second call does nothing."""
        for role in list(self._links):
            self._drop(role)
        self._exit.close()

    # --- what it does ------------------------------------------------------------------------

    def classify(self, text: str, *, allow_longer: bool = False) -> Classification:
        """Classify a text.

        allow_longer: than the texts that the model was calibrated with.

        Raises:
            UsageError: the model has no labels, or the text is too long.
            PeerError, TransportError: another party misbehaves or is lost; the serial is burnt.
            DamagedError: material of this machine is damaged; it is thrown away, so try again.
        """
        return self.classify_ids(self.ids(text), allow_longer=allow_longer)

    def classify_ids(self, ids: Sequence[int], *, allow_longer: bool = False) -> Classification:
        """As `classify`, for a text that is token ids already."""
        labels = self.public.architecture.labels
        if not labels:
            raise UsageError("this model has no labels: it gives embeddings")
        answer, cost, serial = self._infer(ids, allow_longer)
        shifted = np.exp(answer.output - answer.output.max())
        shares = (shifted / shifted.sum()).tolist()
        return Classification(
            label=labels[int(answer.output.argmax())],
            probabilities=dict(zip(labels, shares, strict=True)),
            logits=answer.output,
            integers=answer.integers,
            flagged=answer.flagged,
            cost=cost,
            serial=serial,
        )

    def embed(self, text: str, *, allow_longer: bool = False) -> Embedding:
        """The embedding of a text; errors as `classify`."""
        return self.embed_ids(self.ids(text), allow_longer=allow_longer)

    def embed_ids(self, ids: Sequence[int], *, allow_longer: bool = False) -> Embedding:
        """As `embed`, for a text that is token ids already."""
        if self.public.architecture.labels:
            raise UsageError("this model has labels: it classifies")
        answer, cost, serial = self._infer(ids, allow_longer)
        return Embedding(answer.output, answer.integers, answer.flagged, cost, serial)

    def ids(self, text: str) -> list[int]:
        """The token ids of a text, special ones included. They stay here."""
        if self._tokenizer is None:
            self._tokenizer = Tokenizer(self._part.tokenizer_json)
        return self._tokenizer.ids(text)

    def stock(self, n_tokens: int, count: int) -> dict[int, wire.Dealt]:
        """Have so much material for texts of this length in stock, at both parties.

        Returns what the dealer says of the serials dealt for that.

        Raises:
            PeerError, TransportError: the dealer or the assistant refuses or is lost.
        """
        new: dict[int, wire.Dealt] = {}
        self._fetch_waiting(n_tokens, count)
        while list(self._store.in_stock().values()).count(n_tokens) < count:
            serial = self._deal(n_tokens)
            new[serial] = self._dealt[serial]
        with self._speaking("P2") as link:
            links.ask(link, wire.Collect(), wire.Confirmed)
        return new

    def in_stock(self) -> dict[int, int]:
        """Unused material: serial -> number of tokens."""
        return self._store.in_stock()

    # --- one inference -----------------------------------------------------------------------

    def _infer(self, ids: Sequence[int], allow_longer: bool) -> tuple[Answer, Cost, int]:
        tokens = check_ids(self.public, ids, allow_longer=allow_longer)
        start_s = time.perf_counter()
        serial = self._serial_for(len(tokens))
        fetched_s = time.perf_counter()
        try:
            prepared, ran, done = self._compute(serial, tokens)
        except (DamagedError, SpentError):
            self._store.discard(serial)
            raise
        if ran.answer is None:
            raise AssertionError("party 1 gets the answer")
        dealt = self._dealt.pop(serial, None)
        cost = Cost(
            n_tokens=len(tokens),
            n_rounds=ran.n_rounds,
            offline_bytes=prepared.n_bytes + done.offline_bytes,
            online_bytes=ran.online_bytes,
            embedding_bytes=ran.embedding_bytes,
            deal_s=dealt.seconds if dealt else 0.0,
            deal_cpu_s=dealt.cpu_s if dealt else 0.0,
            fetch_s=fetched_s - start_s,
            prepare_s=ran.start_s - fetched_s,
            online_s=max(ran.online_s, done.online_s),
            cpu_s=ran.cpu_s,
            assistant_cpu_s=done.cpu_s,
        )
        return ran.answer, cost, serial

    def _compute(self, serial: int, tokens: Integers) -> tuple[Prepared, Ran, wire.Done]:
        n_tokens = len(tokens)
        with self._speaking("P2") as assistant, contextlib.ExitStack() as asking:
            channels = {"P2": assistant}
            links.send(assistant, self._computer.hello(serial, n_tokens))
            prepared = self._computer.prepare(serial, n_tokens)
            theirs = links.receive(assistant, wire.Hello)
            self._computer.check_hello(theirs, serial, n_tokens)
            entry = self._entry(serial, tokens)
            self._store.use(serial)
            try:
                if self._part.client is None:
                    channels["P0"] = asking.enter_context(self._speaking("P0"))
                    question = wire.Question(serial, n_tokens)
                    links.ask(channels["P0"], question, wire.Listening)
                links.send(assistant, wire.Go())
                ran = self._computer.run(prepared, entry, channels)
                done = links.receive(assistant, wire.Done)
            finally:
                self._store.discard(serial)
        return prepared, ran, done

    def _entry(self, serial: int, tokens: Integers) -> Protocol[Array]:
        """This party's share of the entry."""
        public, welcome = self.public, self._store.welcome
        bits = public.profile.rings.linear
        if self._part.client is not None:
            entry = client_entry(public, self._part.client, tokens.tolist())
            return given(wrap(entry.astype(dtype_of(bits)), bits))
        a = public.architecture
        return embedding.ask(
            welcome.key, tokens.tolist(), a.n_vocab, a.hidden, bits, tweak(welcome, serial)
        )

    # --- material ----------------------------------------------------------------------------

    def _serial_for(self, n_tokens: int) -> int:
        """Unused material for this length: in stock, waiting at the dealer, or dealt now."""
        if n_tokens not in self._store.in_stock().values():
            self._fetch_waiting(n_tokens, 1)
        for serial, length in self._store.in_stock().items():
            if length == n_tokens:
                return serial
        return self._deal(n_tokens)

    def _fetch_waiting(self, n_tokens: int, count: int) -> None:
        """Fetch what the dealer dealt already, until so many of this length are in stock."""
        with self._speaking("P0") as link:
            waiting = links.ask(link, wire.ListDealt(), wire.Dealt)
            for serial, length in zip(
                waiting.serials.tolist(), waiting.lengths.tolist(), strict=True
            ):
                n_here = list(self._store.in_stock().values()).count(n_tokens)
                if length == n_tokens and (n_here < count or self._store.has(str(serial))):
                    self._fetch(link, serial)

    def _deal(self, n_tokens: int) -> int:
        """Have one inference dealt, and fetch it."""
        with self._speaking("P0") as link:
            dealt = links.ask(link, wire.Deal(n_tokens), wire.Dealt)
            if len(dealt.serials) != 1 or dealt.lengths[0] != n_tokens:
                raise PeerError(f"{link.peer} dealt something else than it was asked for")
            serial = int(dealt.serials[0])
            self._fetch(link, serial)
        self._dealt[serial] = dealt
        return serial

    def _fetch(self, link: Channel, serial: int) -> None:
        """Fetch what the dealer has; what it has damaged is not asked for again."""
        try:
            links.fetch(link, self._store, str(serial))
        except (VerificationError, SpentError):
            self._store.discard(serial)
            raise

    # --- connections -------------------------------------------------------------------------

    @contextlib.contextmanager
    def _speaking(self, role: str) -> Iterator[Channel]:
        """A connection that is kept while all goes well; after a failure it is ended."""
        if role in self._links and time.monotonic() - self._used_s[role] > _IDLE_S:
            self._drop(role)
        if role not in self._links:
            link = links.call(self._seat, role, self._patience_s[role])
            self._patience_s[role] = min(self._patience_s[role], _SHORT_PATIENCE_S)
            try:
                if role == "P0":
                    self._check_run(links.greet(self._seat, link))
            except BaseException:
                link.close()
                raise
            self._links[role] = link
        try:
            yield self._links[role]
            self._used_s[role] = time.monotonic()
        except BaseException:
            self._drop(role)
            raise

    def _check_run(self, welcome: wire.Welcome) -> None:
        if wire.encode(welcome) != wire.encode(self._store.welcome):
            raise PeerError("the dealer has begun another run, or serves another model: start anew")

    def _drop(self, role: str) -> None:
        self._links.pop(role).close()
