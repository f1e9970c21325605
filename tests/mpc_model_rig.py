"""Small models of every family through the whole protocol, in one process: dealer, private
retrieval of the embedding, both parties, and the twin with the parties' own rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from mpc_rig import rubbish

from veilrun.mpc import embedding, inference, native, ring
from veilrun.mpc.inference import Answer
from veilrun.mpc.machines.party import PARTIES, Party
from veilrun.mpc.machines.twin import Overflow
from veilrun.mpc.material import halves
from veilrun.mpc.model.architecture import Architecture, FloatModel, random_model
from veilrun.mpc.model.calibration import calibrate
from veilrun.mpc.model.entry import entry_of
from veilrun.mpc.model.quantise import quantise
from veilrun.mpc.model.quantised import SECRET_EMBEDDING, QuantisedModel, matrix_of
from veilrun.mpc.plan import Bill
from veilrun.mpc.prg import Stream
from veilrun.mpc.profile import W16A8, Profile
from veilrun.mpc.replay import Roundings
from veilrun.mpc.shares import dtype_of, wrap
from veilrun.transport.connection import Frame
from veilrun.transport.rounds import Cost, Protocol, simulate

KEYS = (b"\x01" * 32, b"\x02" * 32)
DIGEST = b"\x03" * 32
Start = Callable[[np.ndarray], Protocol[Answer | None]]
"""A party's part, from its share of the entry."""
FAMILIES = ("bert", "distilbert", "roberta")


@dataclass
class Ran:
    """answer: party 1's. twin: its prediction. dealt: bytes to each party. frames: all sent."""

    answer: Answer
    twin: Answer
    overflows: list[Overflow]
    bill: Bill
    cost: Cost
    dealt: tuple[int, int]
    frames: list[Frame]

    def sent_bytes(self, sender: str, receiver: str) -> int:
        return sum(
            len(one.content)
            for one in self.frames
            if (one.sender, one.receiver) == (sender, receiver)
        )


def architecture(family: str = "bert", *, is_encoder: bool = False, **sizes: int) -> Architecture:
    labels = () if is_encoder else ("no", "yes", "maybe")
    shape = {"n_layers": 2, "n_heads": 4, "hidden": 48, "intermediate": 96, "n_vocab": 60}
    return Architecture(
        family=family,
        **{**shape, "n_positions": 26, **sizes},
        position_offset=2 if family == "roberta" else 0,
        head_activation=None if is_encoder else "relu" if family == "distilbert" else "tanh",
        n_labels=len(labels),
        labels=labels,
    )


def float_model(shape: Architecture, seed: int = 0) -> FloatModel:
    """Random, with weights so large that attention and classes differ between texts."""
    model = random_model(shape, seed)
    for layer in model.layers:
        for linear in (layer.qkv, layer.out, layer.up, layer.down):
            linear.weight[...] *= 50 * len(linear.weight) ** -0.5
    if model.head is not None:
        for linear in (model.head.dense, model.head.out):
            linear.weight[...] *= 50 * shape.hidden**-0.5
    return model


def texts(shape: Architecture, n: int = 6, seed: int = 0) -> list[list[int]]:
    random = np.random.default_rng(seed)
    lengths = [12, *random.integers(3, 13, n - 1)]
    return [random.integers(0, shape.n_vocab, length).tolist() for length in lengths]


def quantised(
    model: FloatModel,
    *,
    profile: Profile = W16A8,
    kind: str = SECRET_EMBEDDING,
    seed: int = 0,
) -> QuantisedModel:
    ranges = calibrate(model, texts(model.architecture, 24, seed))
    return quantise(model, ranges, profile, embedding=kind)


def run(model: QuantisedModel, ids: Sequence[int], serial: int = 1) -> Ran:
    """One inference, from ids to the answer."""
    public = model.public
    tweak = inference.tweak_of(DIGEST, serial)
    plan = inference.plan(public, len(ids))
    sinks = (bytearray(), bytearray())
    streams = [Stream(key, "inference", serial) for key in KEYS]
    inference.deal(
        inference.DealerModel(model),
        len(ids),
        (streams[0], streams[1]),
        (sinks[0].extend, sinks[1].extend),
        tweak,
    )
    roundings = Roundings()
    parties = []
    shares = weight_shares(model)
    dealt = [
        list(halves(plan, index, Stream(KEYS[index], "inference", serial), bytes(sinks[index])))
        for index in range(2)
    ]
    for index in range(2):
        parties.append(
            Party(
                index,
                shares[index],
                public.tables,
                dealt[index],
                tweak,
                watch_rounding=roundings.share,
                watch_mask=roundings.mask_1 if index == 0 else roundings.mask_2,
            )
        )
    frames: list[Frame] = []
    entries: dict[int, np.ndarray] = {}

    def start(index: int, entry: np.ndarray) -> Protocol[Answer | None]:
        entries[index] = entry
        return inference.run(public, parties[index], entry)

    starts = [partial(start, index) for index in range(2)]
    results, cost = simulate(_protocols(model, ids, starts, serial, tweak), watch=frames.append)
    assert [party.n_left for party in parties] == [0, 0]
    if native.KERNEL is not None and native.KERNEL.has_aes:
        taped = {}
        for index, name in enumerate(PARTIES):
            tape = inference.record(public, plan, index, shares[index], len(ids), native.KERNEL)
            with rubbish():
                loaded = tape.load(dealt[index], tweak)
            taped[name] = inference.play(public, tape, loaded, entries[index])
        again, _ = simulate(taped)
        assert again["P1"].flagged == results["P1"].flagged
        np.testing.assert_array_equal(again["P1"].integers, results["P1"].integers)
    twin, overflows = inference.predict(
        inference.TwinModel(model), entry_of(model, ids), roundings.low_bits
    )
    answer = results["P1"]
    assert answer is not None
    sizes = (len(sinks[0]), len(sinks[1]))
    return Ran(answer, twin, overflows, plan.bill, cost, sizes, frames)


def weight_shares(model: QuantisedModel) -> list[dict[str, object]]:
    bits = model.public.profile.rings.linear
    shares: list[dict[str, object]] = [{}, {}]
    for name, matrix in model.private.matrices.items():
        weight = matrix.weight.astype(dtype_of(bits))
        first = Stream(KEYS[0], "weight " + name).uniform(weight.shape, bits)
        for index, half in enumerate((first, wrap(weight - first, bits))):
            shares[index][name] = matrix_of(half, None, matrix.is_dense)
    return shares


def _protocols(
    model: QuantisedModel, ids: Sequence[int], starts: Sequence[Start], serial: int, tweak: bytes
) -> dict[str, Protocol[Answer | None]]:
    public = model.public
    a, bits = public.architecture, public.profile.rings.linear
    if public.embedding != SECRET_EMBEDDING:
        entry = entry_of(model, ids)
        parts = (wrap(entry.view(np.uint64), bits), np.zeros(entry.shape, dtype_of(bits)))
        return {name: start(part) for name, start, part in zip(PARTIES, starts, parts, strict=True)}
    word = model.private.word
    assert word is not None
    masked = ring.pack(embedding.mask_table(KEYS[0], word.astype(dtype_of(bits)), bits))
    n = len(ids)

    def dealer() -> Protocol[None]:
        yield from embedding.answer(KEYS[1], masked, n, bits, serial, tweak)

    def first() -> Protocol[Answer | None]:
        rows = yield from embedding.ask(KEYS[0], ids, a.n_vocab, a.hidden, bits, tweak)
        return (yield from starts[0](rows))

    def second() -> Protocol[Answer | None]:
        rows = yield from embedding.share(KEYS[1], masked, n, bits, serial, tweak)
        return (yield from starts[1](rows))

    return {"P0": dealer(), "P1": first(), "P2": second()}
