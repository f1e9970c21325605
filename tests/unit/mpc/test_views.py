"""What each single party sees: uniform, and the same for any two inputs of one length.

A view is what reaches a party from the others: material from the dealer, and frames. Over many
inferences with fresh masks and two very different inputs, its bytes must be uniform, and no
place in it may have another mean for one input than for the other. The same statistics are
shown to turn red where the masks are taken away.
"""

from __future__ import annotations

import math
from typing import Any

import mpc_model_rig as rig
import numpy as np
import pytest

from veilrun.mpc.model.quantised import CLIENT_EMBEDDING, SECRET_EMBEDDING, QuantisedModel
from veilrun.mpc.prg import Stream
from veilrun.mpc.shares import Array, dtype_of

N_TOKENS = 12  # with the rig's sizes every tensor of every frame ends on a whole byte
N_RUNS = 32
SAME = [7] * N_TOKENS
DIFFERENT = [(11 * i + 3) % 60 for i in range(N_TOKENS)]


def views(model: QuantisedModel, ids: list[int], first_serial: int) -> dict[str, Array]:
    """Party -> [N_RUNS, n_bytes], what reached it in each of many inferences."""
    seen: dict[str, list[bytes]] = {"P0": [], "P1": [], "P2": []}
    for serial in range(first_serial, first_serial + N_RUNS):
        ran = rig.run(model, ids, serial)
        for party, runs in seen.items():
            runs.append(b"".join(f.content for f in ran.frames if f.receiver == party))
    return {
        party: np.stack([np.frombuffer(run, np.uint8) for run in runs])
        for party, runs in seen.items()
    }


def uniformity(view: Array) -> float:
    """How many standard deviations chi squared of the bytes is above that of uniform ones."""
    counts = np.bincount(view.reshape(-1), minlength=256)
    expected = view.size / 256
    chi = ((counts - expected) ** 2 / expected).sum()
    return float((chi - 255) / math.sqrt(2 * 255))


def dependence(one: Array, other: Array) -> float:
    """The largest difference of means between two inputs at any place, in standard deviations."""
    spread = math.sqrt((256**2 - 1) / 12 * 2 / N_RUNS)
    return float(np.abs(one.mean(0) - other.mean(0)).max() / spread)


def bound(n_places: int) -> float:
    """Exceeded by chance by the largest of so many normal deviates once in ten thousand tests."""
    return math.sqrt(2 * math.log(2 * n_places * 10_000))


@pytest.fixture(scope="module", params=[SECRET_EMBEDDING, CLIENT_EMBEDDING])
def model(request: Any) -> QuantisedModel:
    return small(request.param)


def small(embedding: str) -> QuantisedModel:
    shape = rig.architecture(hidden=16, n_heads=2, intermediate=32)
    return rig.quantised(rig.float_model(shape), kind=embedding)


def test_a_single_party_sees_uniform_bytes_whatever_the_input(model: QuantisedModel) -> None:
    of_same, of_different = views(model, SAME, 1), views(model, DIFFERENT, 1001)
    for party, one in of_same.items():
        other = of_different[party]
        assert one.shape == other.shape  # lengths depend on the number of tokens alone
        if not one.size:  # with the client's own embedding the dealer sees nothing at all
            assert (party, model.public.embedding) == ("P0", CLIENT_EMBEDDING)
            continue
        assert uniformity(one) < 6
        assert uniformity(other) < 6
        assert dependence(one, other) < bound(one.shape[1])


def test_the_statistics_see_missing_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small(CLIENT_EMBEDDING)

    def zeros(stream: Stream, shape: tuple[int, ...], bits: int) -> Array:
        return np.zeros(shape, dtype_of(bits))

    monkeypatch.setattr(Stream, "uniform", zeros)
    of_same, of_different = views(model, SAME, 1), views(model, DIFFERENT, 1001)
    for party in ("P1", "P2"):
        assert uniformity(of_same[party]) > 100
    assert dependence(of_same["P2"], of_different["P2"]) > 2 * bound(of_same["P2"].shape[1])


def test_material_is_uniform_too(model: QuantisedModel) -> None:
    """Corrections and halves: each party's own, over several serials."""
    from veilrun.mpc import inference

    dealer = inference.DealerModel(model)
    for party in range(2):
        dealt = bytearray()
        for serial in range(1, 6):
            sinks = (bytearray(), bytearray())
            streams = (Stream(rig.KEYS[0], "i", serial), Stream(rig.KEYS[1], "i", serial))
            writes = (sinks[0].extend, sinks[1].extend)
            inference.deal(dealer, N_TOKENS, streams, writes, bytes(16))
            dealt += sinks[party]
        assert uniformity(np.frombuffer(bytes(dealt), np.uint8)) < 6
