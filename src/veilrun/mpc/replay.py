"""A serial computed once more, by whoever has everything: what the twin says to it, bit for bit.

    again = Replay.of(model_folder, dealer_state)
    assert np.array_equal(again.run(ids, result.serial).twin.integers, result.integers)

The twin rounds as the parties do once it is told party 1's low bits at each rounding. They follow
from both parties' keys and the serial; where the embedding is secret, also from the question that
party 1 asked, whose seeds it drew afresh (`overheard`). So the serial is dealt again, both parties
run in this process, and the twin is told what they rounded with.

Used by tests and benchmarks, and for an audit of a run whose keys are given up for it: with them,
the model and the text, nothing of that run is hidden.

Invariant: nothing is written, and no serial is used up.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, final

import numpy as np

from veilrun.errors import UsageError
from veilrun.mpc import embedding, inference, ring, weight_shares
from veilrun.mpc.inference import Answer, DealerModel, TwinModel
from veilrun.mpc.machines.party import PARTIES, Party
from veilrun.mpc.machines.twin import Overflow
from veilrun.mpc.material import halves
from veilrun.mpc.model import files
from veilrun.mpc.model.entry import check_ids, entry_of
from veilrun.mpc.model.quantised import SECRET_EMBEDDING, Integers, QuantisedModel, matrix_of
from veilrun.mpc.prg import Stream
from veilrun.mpc.roles.online import stream_of
from veilrun.mpc.roles.outbox import Outbox
from veilrun.mpc.shares import Array, dtype_of, wrap
from veilrun.mpc.weights import Matrix
from veilrun.transport.rounds import Protocol, simulate


@final
@dataclass(frozen=True, slots=True, eq=False)
class Replayed:
    """answer: the parties', computed again. twin: what the twin says. overflows: what it saw
    leave its range; where that is anything, the two may differ.
    """

    answer: Answer
    twin: Answer
    overflows: list[Overflow]


@final
class Roundings:
    """What parties rounded with, taken down in order, and told to the twin.

    Of party 1 its shares at roundings, and of both parties their halves of masks, in the order
    in which party 1 meets them; party 2 meets the same masks in the same order.
    """

    def __init__(self) -> None:
        self._first: deque[tuple[bool, Array, int]] = deque()
        self._second: deque[Array] = deque()

    def __repr__(self) -> str:
        return f"Roundings({len(self._first)} left)"

    def share(self, share: Array, by: int) -> None:
        """`watch_rounding` of party 1."""
        self._first.append((False, share, by))

    def mask_1(self, half: Array, by: int) -> None:
        """`watch_mask` of party 1."""
        self._first.append((True, half, by))

    def mask_2(self, half: Array, by: int) -> None:
        """`watch_mask` of party 2."""
        self._second.append(half)

    def low_bits(self, shape: tuple[int, ...], by: int) -> Array:
        """The twin's `LowBits`."""
        is_mask, array, was_by = self._first.popleft()
        if (array.shape, was_by) != (shape, by):
            raise AssertionError("the twin and the parties round at different places")
        if is_mask:
            array = array + self._second.popleft()
        result: Array = array.astype(np.int64) & ((1 << by) - 1)
        return result


@final
class Replay:
    """One model and one run of its dealer, made once for any number of its serials.

    keys: k_01 and k_02. run: what the tweaks are made of, digest and run (`roles.online.tweak`).
    """

    def __init__(self, model: QuantisedModel, keys: tuple[bytes, bytes], run: bytes) -> None:
        self._model = model
        self._keys = keys
        self._run = run
        self._dealer = DealerModel(model)
        self._twin = TwinModel(model)
        self._shares = _weight_shares(model, keys[0])
        table = weight_shares.masked_table(keys[0], model)
        self._masked = None if table is None else ring.pack(table)

    def __repr__(self) -> str:
        return "Replay(secret)"

    @classmethod
    def of(cls, model: Path, state: Path) -> Self:
        """A quantised folder, and the state folder of the dealer that serves it.

        Raises:
            StorageError, CheckpointError: one of them cannot be read.
        """
        outbox = Outbox(state, files.digest(model))
        return cls(files.load(model), outbox.keys, outbox.digest + outbox.run)

    def run(
        self, ids: Sequence[int] | Integers, serial: int, question: bytes | None = None
    ) -> Replayed:
        """The serial once more.

        question: about embedding rows, as party 2 got it; needed where the embedding is secret.

        Raises:
            UsageError: ids that the model does not read, or a question that is missing.
            DecodeError: a question of another length.
        """
        tokens = check_ids(self._model.public, list(ids), allow_longer=True)
        public, tweak = self._model.public, inference.tweak_of(self._run, serial)
        plan = inference.plan(public, len(tokens))
        sinks = (bytearray(), bytearray())
        writes = (sinks[0].extend, sinks[1].extend)
        streams = self._streams(serial, len(tokens))
        inference.deal(self._dealer, len(tokens), streams, writes, tweak)
        roundings = Roundings()
        watches: tuple[dict[str, Any], ...] = (
            {"watch_rounding": roundings.share, "watch_mask": roundings.mask_1},
            {"watch_mask": roundings.mask_2},
        )
        protocols: dict[str, Protocol[Answer | None]] = {}
        entries = self._entries(tokens, serial, tweak, question)
        for index, stream in enumerate(self._streams(serial, len(tokens))):
            correlations = halves(plan, index, stream, bytes(sinks[index]))
            party = Party(
                index, self._shares[index], public.tables, correlations, tweak, **watches[index]
            )
            protocols[PARTIES[index]] = inference.run(public, party, entries[index])
        results, _ = simulate(protocols)
        entry = entry_of(self._model, tokens)
        twin, overflows = inference.predict(self._twin, entry, roundings.low_bits)
        answer = results["P1"]
        if answer is None:
            raise AssertionError("party 1 gets the answer")
        return Replayed(answer, twin, overflows)

    def _streams(self, serial: int, n_tokens: int) -> tuple[Stream, Stream]:
        first, second = (stream_of(key, serial, n_tokens) for key in self._keys)
        return first, second

    def _entries(
        self, tokens: Integers, serial: int, tweak: bytes, question: bytes | None
    ) -> tuple[Array, Array]:
        """Both parties' shares of the entry."""
        public = self._model.public
        bits = public.profile.rings.linear
        whole = wrap(entry_of(self._model, tokens).astype(dtype_of(bits)), bits)
        if public.embedding != SECRET_EMBEDDING or self._masked is None:
            return whole, np.zeros_like(whole)
        if question is None:
            raise UsageError("a secret embedding: the question that was asked is needed too")
        asked = embedding.share(self._keys[1], self._masked, len(tokens), bits, serial, tweak)
        next(asked)
        try:
            asked.send({"P1": question})
        except StopIteration as end:
            second: Array = end.value
            return wrap(whole - second, bits), second
        raise AssertionError("one question, one answer")


def overheard(asking: Protocol[Array], questions: list[bytes]) -> Protocol[Array]:
    """`embedding.ask` as it is, which leaves in `questions` what it asks party 2."""
    asked = next(asking)
    questions.append(asked.outgoing["P2"])
    inbox = yield asked
    try:
        asking.send(inbox)
    except StopIteration as end:
        rows: Array = end.value
        return rows
    raise AssertionError("one question, one answer")


def _weight_shares(
    model: QuantisedModel, key_1: bytes
) -> tuple[dict[str, Matrix], dict[str, Matrix]]:
    bits = model.public.profile.rings.linear
    first, second = {}, {}
    for name, matrix in model.private.matrices.items():
        weight = matrix.weight.astype(dtype_of(bits))
        share = weight_shares.first_share(key_1, model.public, name)
        first[name] = matrix_of(share, None, matrix.is_dense)
        second[name] = matrix_of(wrap(weight - share, bits), None, matrix.is_dense)
    return first, second
