"""Models of signs and levels: what the twin computes is what a float network with rounding does,
the protocol computes the twin's integers, and it all stays within the bytes it was made for.
"""

from __future__ import annotations

import dataclasses
import math

import mpc_model_rig as rig
import numpy as np
import pytest

from veilrun.errors import UsageError
from veilrun.mpc import cost, inference
from veilrun.mpc.inference import TwinModel
from veilrun.mpc.machines.twin import uniform_low_bits
from veilrun.mpc.model import binary, files
from veilrun.mpc.model.binary import BinaryLayer, BinaryMatrix, BinaryModel, WholeMatrix
from veilrun.mpc.model.entry import entry_of
from veilrun.mpc.model.quantise import neuron_groups
from veilrun.mpc.model.quantised import SECRET_EMBEDDING
from veilrun.mpc.model.reference import gelu
from veilrun.mpc.profile import W1A4, W16A8

MATRICES = ("qkv", "out", "up", "down")
HEAD_WINDOW, GELU_WINDOW = 8.0, 8.0


def binary_model(seed: int = 0) -> BinaryModel:
    """Random, at scales that fill the windows about as far as a trained one does."""
    random = np.random.default_rng(seed)
    shape = rig.architecture()
    d, wide, n_heads = shape.hidden, shape.intermediate, shape.n_heads

    def signs(n_in: int, n_out: int, level: float, bias: float) -> BinaryMatrix:
        return BinaryMatrix(
            random.random((n_in, n_out)) < 0.5,
            np.maximum(1, np.rint(level * random.uniform(0.5, 1.5, n_out))).astype(np.int64),
            np.rint(bias * random.standard_normal(n_out)).astype(np.int64),
        )

    def layer() -> BinaryLayer:
        neurons = neuron_groups(wide)
        return BinaryLayer(
            qkv=signs(d, 3 * d, 7, 100),
            score=np.full(n_heads, 140),
            out=signs(d, d, 40, 200),
            gain_1=random.integers(150, 300, d),
            up=signs(d, wide, 120, 500),
            neurons=neurons,
            gelu_windows=(GELU_WINDOW,) * len(neurons),
            down=signs(wide, d, 15, 200),
            gain_2=random.integers(150, 300, d),
        )

    def whole(n_in: int, n_out: int, size: float) -> WholeMatrix:
        weight = np.rint(size * random.standard_normal((n_in, n_out)))
        return WholeMatrix(weight.astype(np.int64), np.zeros(n_out, np.int64))

    return BinaryModel(
        architecture=shape,
        word=random.integers(-2500, 2500, (shape.n_vocab, d)),
        position=random.integers(-500, 500, (shape.max_tokens, d)),
        layers=tuple(layer() for _ in range(shape.n_layers)),
        head_dense=whole(d, d, 150),
        head_window=HEAD_WINDOW,
        head_out=whole(d, shape.n_labels, 100),
        output_scale=1000.0,
        max_tokens=12,
        n_sentences=1,
    )


def nearest(shape: tuple[int, ...], bits: int) -> np.ndarray:
    """The low bits with which the twin rounds to the nearest."""
    return np.full(shape, 1 << (bits - 1))


def dense(x: np.ndarray, matrix: BinaryMatrix) -> np.ndarray:
    return x @ np.where(matrix.is_positive, 1.0, -1.0) * matrix.level + matrix.bias


def shifted(x: np.ndarray, bits: int) -> np.ndarray:
    """x / 2^bits, to the nearest."""
    return np.floor(x * 2.0**-bits + 0.5)


class FloatNetwork:
    """The formulas of `model.binary`, on whole numbers in floats; the functions are computed and
    not looked up, at the places of the grids.
    """

    def __init__(self, model: BinaryModel) -> None:
        self.model = model

    def logits(self, ids: list[int]) -> np.ndarray:
        model = self.model
        x = self.normalised((model.word[ids] + model.position[: len(ids)]).astype(np.float64))
        for layer in model.layers:
            h = dense(self.attention(x, layer), layer.out) + x * layer.gain_1
            x = self.normalised(h)
            z = shifted(dense(x, layer.up), W1A4.windows.gelu - W1A4.functions.gelu.index_bits)
            step = GELU_WINDOW / 2**W1A4.functions.gelu.index_bits
            g = np.rint(gelu(z * step) * 2.0**W1A4.gelu_fraction)
            x = self.normalised(dense(g, layer.down) + x * layer.gain_2)
        z = x[:1] @ model.head_dense.weight + model.head_dense.bias
        n_bits = W1A4.functions.head.index_bits
        place = shifted(z, W1A4.windows.head - n_bits) * (HEAD_WINDOW / 2**n_bits)
        t = np.rint(np.tanh(place) * 2.0**W1A4.gelu_fraction)
        return (t @ model.head_out.weight + model.head_out.bias)[0]

    def normalised(self, h: np.ndarray) -> np.ndarray:
        shift = W1A4.windows.variance - W1A4.functions.variance.index_bits
        squares = shifted(np.square(h).sum(-1, keepdims=True), shift) * 2.0**shift
        scale = np.rint(2.0 ** (W1A4.x_fraction + 16) / np.sqrt(squares / h.shape[1]))
        return shifted(h * scale, 16)

    def attention(self, x: np.ndarray, layer: BinaryLayer) -> np.ndarray:
        n_heads, d = self.model.architecture.n_heads, x.shape[1]
        z = dense(x, layer.qkv)
        parts = (z[:, :d], z[:, d : 2 * d], z[:, 2 * d :])
        by = W1A4.rings.linear - W1A4.rings.scores, W1A4.values_shift
        q, k, v = (
            shifted(part, shift).reshape(len(x), n_heads, -1).transpose(1, 0, 2)
            for part, shift in zip(parts, (by[0], by[0], by[1]), strict=True)
        )
        scores = q @ k.transpose(0, 2, 1) + layer.score[:, None, None]
        n_bits = W1A4.functions.exp.index_bits
        nats = shifted(scores, W1A4.rings.scores - n_bits) * (binary.EXP_WINDOW / 2**n_bits)
        # 1.8 nats: the room that the grid of e^x leaves above the largest.
        unit = 2.0**W1A4.windows.row_sum / math.exp(binary.EXP_TOP + 1.8)
        e = np.rint(np.exp(np.minimum(nats, binary.EXP_TOP)) * unit)
        shift = W1A4.windows.row_sum - W1A4.functions.row_sum.index_bits
        total = shifted(e.sum(-1, keepdims=True), shift) * 2.0**shift
        reciprocal = np.rint(2.0 ** (16 + binary.CONTEXT_FRACTION) / total)
        context = shifted((e @ v) * reciprocal, 16)
        return context.transpose(1, 0, 2).reshape(x.shape)


@pytest.mark.parametrize("seed", range(3))
def test_the_twin_is_the_float_network_with_rounding(seed: int):
    model = binary_model(seed)
    quantised = binary.quantise_binary(model)
    twin, network = TwinModel(quantised), FloatNetwork(model)
    outputs = []
    for ids in rig.texts(model.architecture, 8, seed):
        answer, overflows = inference.predict(twin, entry_of(quantised, ids), nearest)
        assert not overflows and not answer.flagged
        assert np.array_equal(answer.integers, network.logits(ids))
        assert np.allclose(answer.output * model.output_scale, answer.integers)
        outputs.append(tuple(answer.integers))
    assert len(set(outputs)) == len(outputs)  # and it says something of its input


def test_every_column_has_two_values():
    quantised = binary.quantise_binary(binary_model())
    for name, matrix in quantised.private.matrices.items():
        if name.rpartition(".")[2] not in MATRICES:
            continue
        for column in matrix.weight.T:
            low, high = np.unique(column)
            assert high > 0 and low == -high


def test_the_protocol_computes_the_integers_of_the_twin():
    model = binary_model(5)
    quantised = binary.quantise_binary(model)
    for serial, ids in enumerate(rig.texts(model.architecture, 3), start=1):
        ran = rig.run(quantised, ids, serial)
        assert not ran.overflows and not ran.twin.flagged
        assert np.array_equal(ran.answer.integers, ran.twin.integers)
        said = cost.predict(quantised.public, len(ids))
        assert said.total_bytes == sum(ran.dealt) + ran.cost.sent_bytes


def test_chance_moves_the_answer_little():
    """Rounding up or down by chance is unbiased, so answers lie around that to the nearest."""
    model = binary_model(1)
    quantised = binary.quantise_binary(model)
    twin, ids = TwinModel(quantised), rig.texts(model.architecture, 1)[0]
    answers = np.stack(
        [
            inference.predict(twin, entry_of(quantised, ids), low_bits)[0].output
            for low_bits in map(uniform_low_bits, range(40))
        ]
    )
    middle, _ = inference.predict(twin, entry_of(quantised, ids), nearest)
    assert answers.std(0).min() > 0
    assert (np.abs(answers.mean(0) - middle.output) < 3 * answers.std(0)).all()


@pytest.mark.parametrize("n_tokens", [8, 128])
def test_bert_base_takes_at_most_five_megabytes_a_token(n_tokens: int):
    public = cost.shape_only(cost.BERT_BASE, W1A4, SECRET_EMBEDDING)
    assert cost.predict(public, n_tokens).total_bytes <= 5e6 * n_tokens
    wide = cost.shape_only(cost.BERT_BASE, W16A8, SECRET_EMBEDDING)
    assert cost.predict(wide, n_tokens).total_bytes > 5e6 * n_tokens  # the bound bounds something


def test_it_is_stored_and_read_again(tmp_path):
    quantised = binary.quantise_binary(binary_model())
    files.save(quantised, b"{}", tmp_path / "model")
    again = files.load(tmp_path / "model")
    for name, matrix in quantised.private.matrices.items():
        assert np.array_equal(matrix.weight, again.private.matrices[name].weight)
    weights = (tmp_path / "model" / files.WEIGHTS_FILE).stat().st_size
    n_weights = sum(one.weight.size for one in quantised.private.matrices.values())
    assert weights < 2.5 * n_weights + 8 * quantised.private.constants["position"].size + 40_000


def test_what_has_no_such_form_is_refused():
    model = binary_model()
    first = model.layers[0]
    none = dataclasses.replace(first.out, level=first.out.level * 0)
    big = dataclasses.replace(first.out, level=first.out.level + 2**15)
    for matrix, says in ((none, "below 1"), (big, "16 bits")):
        layers = (dataclasses.replace(first, out=matrix), *model.layers[1:])
        with pytest.raises(UsageError, match=f"layer_0.out.*{says}"):
            binary.quantise_binary(dataclasses.replace(model, layers=layers))
    encoder = dataclasses.replace(model, architecture=rig.architecture(is_encoder=True))
    with pytest.raises(UsageError, match="classifier"):
        binary.quantise_binary(encoder)
