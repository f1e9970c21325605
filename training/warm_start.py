"""What a network with 1-bit matrices starts from: a float model, folded and measured.

A norm's output is a choice of coordinates: rows y = D LN(h) / rms, any diagonal D, with D in the
columns of the matrices before and 1 / D in the rows of those after. D is chosen so that the rows
of the matrix after are alike in magnitude, which signs can tell apart as little as levels; the
same between values and `out`. Keys are moved and scaled against queries for nothing, too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from binary_network import (
    GELU_STEPS,
    RINGS,
    ROOM,
    SCORE_SHIFT,
    SCORES_PER_NAT,
    SUM_NATS,
    WINDOWS,
    Frame,
    LayerStart,
    NetworkStart,
)

from veilrun.mpc.model import binary, reference
from veilrun.mpc.model.architecture import FloatModel, Layer, Norm
from veilrun.mpc.model.calibration import LayerRanges, calibrate
from veilrun.mpc.model.quantise import neuron_groups
from veilrun.mpc.operations import NO_ANCHOR
from veilrun.mpc.profile import W1A4

PEAK_TO_RMS = 3.2  # room above a typical row's sum of squares
VALUE_RMS = 4.0  # of an attention value, in integers: about 4 bits with its sign
MARGIN = 1.5  # of the GELU's windows and the head's, over what was seen
PEAK = 6.0  # of a channel in a row whose mean square is 1; one that goes higher keeps its scale
FLATTEN = 3.0  # rows are made alike up to this factor


@dataclass
class Measured:
    """A tap: q, k and v by channel, squared, and the sums before the norms, less their means."""

    rows: dict[tuple[str, int], list[np.ndarray]] = field(default_factory=dict)

    def __call__(self, name: str, layer: int, value: np.ndarray) -> None:
        if name in ("q", "k", "v"):
            kept = np.square(value).transpose(1, 0, 2).reshape(value.shape[1], -1)
        elif name in ("h_0", "h_1", "h_2"):
            kept = centred(value)
        else:
            return
        self.rows.setdefault((name, layer), []).append(kept)

    def all(self, name: str, layer: int) -> np.ndarray:
        """Of all sentences, [n, channels]."""
        return np.concatenate(self.rows[name, layer])

    def rms(self, name: str, layer: int) -> np.ndarray:
        """By channel."""
        rms: np.ndarray = np.sqrt(self.all(name, layer).mean(0))
        return rms

    def peaks(self, name: str, layer: int) -> np.ndarray:
        """The largest magnitude of each channel of the normalised sums."""
        h = self.all(name, layer)
        peaks: np.ndarray = np.abs(h / np.sqrt(np.square(h).mean(-1, keepdims=True))).max(0)
        return peaks

    def unit(self, name: str, layer: int, scale: np.ndarray) -> float:
        """Integers per 1 of a sum in coordinates of this scale."""
        h = self.all(name, layer) * scale
        sizes = np.sqrt(np.square(h).mean(-1))
        by_square = 2.0 ** (WINDOWS.variance / 2) / math.sqrt(h.shape[1])
        return min(
            by_square / PEAK_TO_RMS / float(np.median(sizes)),
            by_square / MARGIN / float(sizes.max()),
            2.0 ** (RINGS.hidden - 2) / MARGIN / float(np.abs(h).max()),
        )


def warm_start(model: FloatModel, sentences: Sequence[Sequence[int]]) -> NetworkStart:
    """Measure the model on some sentences (token ids), and fold it."""
    ranges, measured = calibrate(model, sentences), Measured()
    for ids in sentences:
        reference.forward(model, ids, measured)
    readers = [weight for layer in model.layers for weight in (layer.qkv.weight, layer.up.weight)]
    norms = [model.norm]
    for layer in model.layers:
        norms += [layer.norm_1, layer.norm_2]
    head = model.head
    if head is None:
        raise SystemExit("the model has no classifier")
    sums = [("h_0", reference.EMBEDDING)]
    for number in range(len(model.layers)):
        sums += [("h_1", number), ("h_2", number)]
    frames = [
        coordinates(norm, weight, measured.peaks(*place))
        for norm, weight, place in zip(norms, [*readers, head.dense.weight], sums, strict=True)
    ]
    unit = measured.unit("h_0", reference.EMBEDDING, frames[0].scale)
    word, position = (
        np.rint(centred(table.astype(np.float64)) * frames[0].scale * unit)
        for table in (model.word, model.position)
    )
    layers = tuple(
        layer_start(number, layer, ranges.layers[number], measured, frames[2 * number :])
        for number, layer in enumerate(model.layers)
    )
    dense, bias = read(head.dense.weight, head.dense.bias, frames[-1])
    window = 2 * MARGIN * ranges.head_max
    logit_unit = 2.0 ** (RINGS.linear - 2) / ranges.logit_max / 1.5
    logit_unit = min(logit_unit, 2.0**14 * GELU_STEPS / float(np.abs(head.out.weight).max()))
    return NetworkStart(
        model.architecture,
        tuple(frames),
        np.clip(word, -(2**15) + 1, 2**15 - 1),
        position[model.architecture.position_offset :],
        layers,
        (dense, bias, 2.0**WINDOWS.head / window),
        window,
        (head.out.weight.astype(np.float64), head.out.bias.astype(np.float64), logit_unit),
    )


def coordinates(norm: Norm, reader: np.ndarray, peaks: np.ndarray) -> Frame:
    """Those in which the rows of `reader` are alike.

    A channel that holds most of some rows (those of [CLS]) is not scaled: made smaller, it would
    leave the norm so little that it blows the whole row up, and scores by the square of that.
    """
    gain = norm.gain.astype(np.float64)
    rows = np.sqrt(np.square(reader.astype(np.float64)).mean(1))
    scale = np.abs(gain) * rows
    scale = np.clip(scale / np.median(scale), 1 / FLATTEN, FLATTEN)
    size = math.sqrt(np.square(scale).mean())
    scale = np.where(peaks > PEAK, size, scale)
    return Frame(scale, gain / scale * size, norm.bias.astype(np.float64))


def read(weight: np.ndarray, bias: np.ndarray, before: Frame) -> tuple[np.ndarray, np.ndarray]:
    """The matrix for rows in these coordinates."""
    wide = weight.astype(np.float64)
    return before.back[:, None] * wide, bias.astype(np.float64) + before.bias @ wide


def centred(rows: np.ndarray) -> np.ndarray:
    """Less the mean over outputs."""
    result: np.ndarray = rows - rows.mean(-1, keepdims=True)
    return result


@dataclass(frozen=True)
class HeadRanges:
    """Of one layer, [H]: row sums in nats, and the lowest score. These networks have no anchors,
    so a head that calibration gave one is taken as it is without it, and without a key shift.
    """

    lse_min: np.ndarray
    lse_max: np.ndarray
    score_low: np.ndarray

    @classmethod
    def of(cls, ranges: LayerRanges) -> HeadRanges:
        is_free = np.array([anchor == NO_ANCHOR for anchor in ranges.anchors])
        return cls(
            np.where(is_free, ranges.lse_min, ranges.plain_lse_min),
            np.where(is_free, ranges.lse_max, ranges.plain_lse_max),
            np.where(is_free, ranges.score_low, ranges.plain_score_low),
        )


def sharpness_of(ranges: HeadRanges) -> np.ndarray:
    """What part of each head's scores its window holds: a sharper head starts blunter."""
    low = sum(SUM_NATS) / 2 + ROOM * binary.EXP_WINDOW / 2  # nats below a sum, that a score may lie
    spread = 2 * (SUM_NATS[1] - SUM_NATS[0])
    fits: np.ndarray = np.minimum(
        low / (ranges.lse_max - ranges.score_low), spread / (ranges.lse_max - ranges.lse_min)
    )
    return np.minimum(fits, 1.0)


def layer_start(
    number: int,
    layer: Layer,
    ranges: LayerRanges,
    measured: Measured,
    frames: Sequence[Frame],
) -> LayerStart:
    """One layer. frames: of its input, and of its two norms."""
    before, between, after = frames[:3]
    width = len(before.scale)
    head_dim = ranges.key_shift.shape[1]

    weight, bias = read(layer.qkv.weight, layer.qkv.bias, before)
    bias[width : 2 * width] += ranges.key_shift.reshape(-1)
    out = centred(layer.out.weight.astype(np.float64)) * between.scale
    flat = np.sqrt(np.square(out).mean(1))
    flat = np.clip(flat / np.median(flat), 1 / FLATTEN, FLATTEN)
    balance = np.sqrt(measured.rms("k", number) / measured.rms("q", number))
    heads = HeadRanges.of(ranges)
    sharpness = sharpness_of(heads)
    columns = np.concatenate([balance * np.repeat(sharpness, head_dim), 1 / balance, flat])
    value_unit = VALUE_RMS / float(np.sqrt(np.square(measured.rms("v", number) * flat).mean()))
    score_unit = math.sqrt(SCORES_PER_NAT / math.sqrt(head_dim)) * 2.0**SCORE_SHIFT
    units = np.repeat([score_unit, score_unit, value_unit * 2.0**W1A4.values_shift], width)
    middle = (heads.lse_min + heads.lse_max) / 2 * sharpness
    score = (sum(SUM_NATS) / 2 - middle) * SCORES_PER_NAT

    order = np.argsort(ranges.up_reach, kind="stable")
    neurons = neuron_groups(len(order))
    ends = np.cumsum(neurons)
    windows = tuple(2 * MARGIN * float(ranges.up_reach[order[end - 1]]) for end in ends)
    up, up_bias = read(layer.up.weight[:, order], layer.up.bias[order], between)
    down = centred(layer.down.weight[order].astype(np.float64)) * after.scale
    return LayerStart(
        qkv=(weight * columns, bias * columns, units),
        score=score,
        out=(
            out / flat[:, None],
            centred(layer.out.bias + before.bias) * between.scale,
            measured.unit("h_1", number, between.scale),
        ),
        gain_1=before.back * between.scale,
        up=(up, up_bias, np.repeat([2.0**WINDOWS.gelu / one for one in windows], neurons)),
        neurons=neurons,
        gelu_windows=windows,
        down=(
            down,
            centred(layer.down.bias + between.bias) * after.scale,
            measured.unit("h_2", number, after.scale),
        ),
        gain_2=between.back * after.scale,
        value_unit=value_unit,
    )
