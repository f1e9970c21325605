"""From a float model and its calibrated ranges to integers.

Every real scale is the owner's business: it is folded into the private matrices, so that each
value fills its public window up to a margin. For a matrix between an input that holds s_in units
per 1 and an output that shall hold s_out, the integers are round(W s_out / s_in).

A norm's gain and bias are folded into the matrices that read it, and its mean into those that
write it: their columns are centred, W - mean over outputs, and so is the residual beside them.
A key's bias does not show in softmax, so the calibrated shift, which makes row sums alike, is
added to it for nothing; a constant per head puts the largest row sum where the tables want it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from veilrun.errors import UsageError
from veilrun.mpc.model import grids
from veilrun.mpc.model.architecture import FloatModel, Layer, Linear, Norm
from veilrun.mpc.model.calibration import LayerRanges, Ranges
from veilrun.mpc.model.quantised import (
    CLIENT_EMBEDDING,
    SECRET_EMBEDDING,
    ClientEmbedding,
    IntegerMatrix,
    Integers,
    PrivateModel,
    PublicModel,
    QuantisedModel,
)
from veilrun.mpc.profile import Profile
from veilrun.mpc.tables import Table

Reals = npt.NDArray[np.float64]

MARGIN: Final = 1.5
"""A window holds this many times the largest value that calibration saw."""

_LARGEST_WEIGHT: Final = 2**15 - 1
_PRECISE_NATS: Final = 7.0
"""How far below the level a row sum may lie before rounding shows; what spreads wider is cut at
both ends."""

_NEURON_GROUPS: Final = (0.4, 0.7, 0.9, 0.98, 1.0)
"""Neurons in order of their reach: where each group ends, as a part of all."""


def quantise(
    model: FloatModel, ranges: Ranges, profile: Profile, *, embedding: str = SECRET_EMBEDDING
) -> QuantisedModel:
    """The integer model.

    embedding: "secret", or "client" where the embedding table is public.

    Raises:
        UsageError: ranges of another model, or no such embedding.
    """
    if embedding not in (SECRET_EMBEDDING, CLIENT_EMBEDDING):
        raise UsageError(
            f"embedding is {SECRET_EMBEDDING!r} or {CLIENT_EMBEDDING!r}, not {embedding!r}"
        )
    if len(ranges.layers) != len(model.layers):
        raise UsageError("these ranges are of a model with another number of layers")
    return _Quantiser(model, ranges, profile).build(embedding)


def neuron_groups(n: int) -> tuple[int, ...]:
    """How many of n neurons, in order of their reach, share each GELU table."""
    ends = sorted({round(n * part) for part in _NEURON_GROUPS} - {0})
    return tuple(end - begin for begin, end in zip([0, *ends], ends, strict=False))


@dataclass(slots=True)
class _Out:
    """What is being built."""

    matrices: dict[str, IntegerMatrix]
    constants: dict[str, Integers]
    tables: dict[str, Table]


class _Quantiser:
    def __init__(self, model: FloatModel, ranges: Ranges, profile: Profile) -> None:
        self._model = model
        self._ranges = ranges
        self._profile = profile
        self._x_scale = 2.0**profile.x_fraction
        self._neurons: list[tuple[int, ...]] = []
        self._out = _Out({}, {}, {"reciprocal": grids.reciprocal(profile)})

    def build(self, embedding: str) -> QuantisedModel:
        model = self._model
        word = self._embedding() if embedding == SECRET_EMBEDDING else None
        before = model.norm
        for number, layer in enumerate(model.layers):
            ranges = self._ranges.layers[number]
            name = f"layer_{number}"
            value_scale = self._attention(name, layer.qkv, before, ranges)
            self._sublayer(
                name,
                "out",
                1,
                layer.out,
                value_scale,
                before,
                layer.norm_1,
                (ranges.h_1_max, ranges.variance_1_max),
            )
            layer = self._up(name, layer, ranges)
            self._sublayer(
                name,
                "down",
                2,
                layer.down,
                2.0**self._profile.gelu_fraction,
                layer.norm_1,
                layer.norm_2,
                (ranges.h_2_max, ranges.variance_2_max),
            )
            before = layer.norm_2
        output_scale = self._head(before)
        client = None
        if word is None:
            client = ClientEmbedding(model.word, model.position, model.norm.eps)
        public = PublicModel(
            model.architecture,
            self._profile,
            embedding,
            tuple(ranges.anchors for ranges in self._ranges.layers),
            tuple(self._neurons),
            self._out.tables,
            output_scale,
            self._ranges.max_tokens,
            self._ranges.n_sentences,
        )
        private = PrivateModel(self._out.matrices, self._out.constants, word)
        return QuantisedModel(public, private, client)

    # --- the parts of the network, in its order --------------------------------------------

    def _embedding(self) -> npt.NDArray[np.int32]:
        """Centred rows, at the scale of a residual sum; positions become a constant."""
        ranges = self._ranges
        scale = self._hidden_scale(ranges.h_0_max, ranges.variance_0_max)
        unit = scale * 2.0**self._profile.hidden_shift
        word, position = (
            np.rint(_centred(table.astype(np.float64)) * unit)
            for table in (self._model.word, self._model.position)
        )
        offset = self._model.architecture.position_offset
        self._out.constants["position"] = position[offset:].astype(np.int64)
        self._norm_table("norm", self._model.norm, scale)
        return word.astype(np.int32)

    def _attention(self, name: str, qkv: Linear, before: Norm, ranges: LayerRanges) -> float:
        """q, k, v and the tables of softmax; the scale of v."""
        rings = self._profile.rings
        n_heads, head_dim = ranges.key_shift.shape
        level = np.maximum(
            ranges.lse_min + _PRECISE_NATS, (ranges.lse_min + ranges.lse_max + _PRECISE_NATS) / 2
        )
        level = np.minimum(level, ranges.lse_max)  # [H], goes to half the row sums' window
        high = float((ranges.score_high - level).max())
        low = float((ranges.score_low - level).min())
        slack = 1.0 + (MARGIN - 1) / 2 * (high - low)
        window = high - low + 2 * slack
        top = window / 2 - slack - high
        units = 2.0**rings.scores / window
        self._out.tables[f"{name}.exp"] = grids.exp(self._profile, window, top)
        constant = np.rint((top - level) * units).astype(np.int64)
        self._out.constants[f"{name}.score"] = constant.reshape(n_heads, 1, 1)

        score_scale = math.sqrt(units / math.sqrt(head_dim)) * 2.0 ** (rings.linear - rings.scores)
        bound = min(
            2.0 ** (rings.values - 2), 2.0 ** (rings.linear - 2 - self._profile.windows.row_sum)
        )
        value_scale = bound / (2 * MARGIN) / ranges.v_max
        hidden = n_heads * head_dim
        scales = np.repeat(
            [score_scale, score_scale, value_scale * 2.0**self._profile.values_shift], hidden
        )
        bias = qkv.bias.copy()
        bias[hidden : 2 * hidden] += ranges.key_shift.reshape(-1).astype(np.float32)
        self._dense(f"{name}.qkv", Linear(qkv.weight, bias), before, self._x_scale, scales)
        return value_scale

    def _sublayer(
        self,
        name: str,
        matrix: str,
        number: int,
        linear: Linear,
        in_scale: float,
        before: Norm,
        norm: Norm,
        seen: tuple[float, float],
    ) -> None:
        """A matrix that ends in a norm, and the residual of what `before` normalised."""
        weight = _centred(linear.weight.astype(np.float64))
        shift = 2.0**self._profile.hidden_shift
        scale = self._hidden_scale(*seen)
        scale = min(scale, _LARGEST_WEIGHT * in_scale / shift / float(np.abs(weight).max()))
        unit = scale * shift
        bias = _centred(linear.bias.astype(np.float64) + before.bias)
        self._out.matrices[f"{name}.{matrix}"] = IntegerMatrix(
            _integers(weight * (unit / in_scale)), np.rint(bias * unit).astype(np.int64), True
        )
        gain = before.gain.astype(np.float64) * (unit / self._x_scale)
        pair = np.stack([np.rint(gain), _rounded_to_sum(gain / len(gain))])
        self._out.matrices[f"{name}.residual_{number}"] = IntegerMatrix(
            _integers(pair), None, False
        )
        self._norm_table(f"{name}.norm_{number}", norm, scale)

    def _up(self, name: str, layer: Layer, ranges: LayerRanges) -> Layer:
        """The first feed-forward matrix; returns the layer with its neurons in the new order.

        Neurons are grouped by how far they reach, so that one that reaches far does not coarsen
        the grid of the others.
        """
        order = np.argsort(ranges.up_reach, kind="stable")
        sizes = neuron_groups(len(order))
        ends = np.cumsum(sizes)
        units = np.empty(len(order))
        for group, (begin, end) in enumerate(zip(ends - sizes, ends, strict=True)):
            window = 2 * MARGIN * float(ranges.up_reach[order[end - 1]])
            self._out.tables[f"{name}.gelu_{group}"] = grids.gelu(self._profile, window)
            units[begin:end] = 2.0**self._profile.windows.gelu / window
        self._neurons.append(sizes)
        up = Linear(layer.up.weight[:, order], layer.up.bias[order])
        self._dense(f"{name}.up", up, layer.norm_1, self._x_scale, units)
        return replace(layer, down=Linear(layer.down.weight[order], layer.down.bias))

    def _head(self, before: Norm) -> float:
        """The classifier, or the sum of rows; units of the output per 1."""
        profile, head = self._profile, self._model.head
        linear = profile.rings.linear
        if head is None:
            unit = self._x_scale * 2.0 ** (linear - 20)
            gain = before.gain.astype(np.float64) * (unit / self._x_scale)
            self._out.matrices["pool"] = IntegerMatrix(
                _integers(np.stack([np.rint(gain), np.zeros_like(gain)])),
                np.rint(before.bias.astype(np.float64) * unit).astype(np.int64),
                False,
            )
            return unit
        window = 2 * MARGIN * self._ranges.head_max
        self._out.tables["head"] = grids.head(profile, window, head.activation)
        self._dense(
            "head_dense", head.dense, before, self._x_scale, 2.0**profile.windows.head / window
        )
        in_scale = 2.0**profile.gelu_fraction
        unit = 2.0 ** (linear - 2) / MARGIN / self._ranges.logit_max
        unit = min(unit, _LARGEST_WEIGHT * in_scale / float(np.abs(head.out.weight).max()))
        self._dense("head_out", head.out, None, in_scale, unit)
        return unit

    # --- pieces ---------------------------------------------------------------------------

    def _dense(
        self,
        name: str,
        linear: Linear,
        before: Norm | None,
        in_scale: float,
        out_scale: float | Reals,
    ) -> None:
        weight, bias = linear.weight.astype(np.float64), linear.bias.astype(np.float64)
        if before is not None:
            bias = bias + before.bias.astype(np.float64) @ weight
            weight = before.gain.astype(np.float64)[:, None] * weight
        self._out.matrices[name] = IntegerMatrix(
            _integers(weight * (out_scale / in_scale)),
            np.rint(bias * out_scale).astype(np.int64),
            True,
        )

    def _hidden_scale(self, h_max: float, variance_max: float) -> float:
        """Units per 1 of a residual sum: it and its sum of squares fit, with the margin."""
        profile = self._profile
        d = self._model.architecture.hidden
        by_value = 2.0 ** (profile.rings.hidden - 2) / MARGIN / h_max
        by_square = math.sqrt(2.0**profile.windows.variance / MARGIN / (d * variance_max))
        return min(by_value, by_square)

    def _norm_table(self, name: str, norm: Norm, scale: float) -> None:
        d = self._model.architecture.hidden
        self._out.tables[name] = grids.inverse_norm(self._profile, d, norm.eps * scale**2)


def _centred(rows: Reals) -> Reals:
    """Less the mean over outputs."""
    result: Reals = rows - rows.mean(axis=-1, keepdims=True)
    return result


def _integers(values: Reals) -> npt.NDArray[np.int32]:
    """Rounded; refused where 32 bits do not hold them."""
    rounded = np.rint(values)
    if rounded.size and np.abs(rounded).max() >= 2**31:
        raise UsageError("a weight is too large for this profile's fixed point")
    return rounded.astype(np.int32)


def _rounded_to_sum(values: Reals) -> Reals:
    """Integers that add up to the sum of the values: a mean of many small weights stays true."""
    total = np.concatenate([[0.0], np.rint(np.cumsum(values))])
    result: Reals = np.diff(total)
    return result
