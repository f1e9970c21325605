"""The forward pass in the clear: what every private or quantised form is measured against.

One sentence at a time, at its true length, so there is no padding and no mask. The number
format is that of the input: float32 as engines compute, or float64 as an oracle of float32.

`forward` is `embed`, then `run_layer` for every layer, then `classify`; a caller with many
sentences may also take one layer over all of them before the next (`calibration`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from veilrun.errors import UsageError
from veilrun.mpc.model.architecture import FloatModel, Linear, Norm

Array = npt.NDArray[np.floating[Any]]
Tap = Callable[[str, int, Array], None]
"""Sees an intermediate value: its name, its layer, the array (not to be changed).

Before the first layer, layer EMBEDDING: h_0 [L, d], the sum; y_0 [L, d], h_0 normalised.
In each layer, 0 to n_layers - 1: q, k, v [H, L, head_dim]; scores [H, L, L], divided by
    sqrt(head_dim); context [H, L, head_dim]; h_1, h_2 [L, d], the sums before the norms; y_1,
    y_2 [L, d], those normalised, before gain and bias; up [L, intermediate], before the GELU.
After the last, layer n_layers: pooled_pre [d], before the head's activation; logits [n_labels].
"""

EMBEDDING: Final = -1


@dataclass(frozen=True, slots=True, eq=False)
class Output:
    """hidden: [L, d], after the last layer. logits: [n_labels]; None for a bare encoder."""

    hidden: Array
    logits: Array | None


def forward(
    model: FloatModel,
    ids: Sequence[int],
    tap: Tap | None = None,
    dtype: type[np.float32] | type[np.float64] = np.float32,
) -> Output:
    """The model's answer to one sentence of token ids, special tokens included.

    Raises:
        UsageError: no ids, more than the model has positions for, or ids it does not know.
    """
    see = tap or _ignore
    x = embed(model, ids, see, dtype)
    for index in range(len(model.layers)):
        x = run_layer(model, index, x, see)
    return Output(x, classify(model, x, see))


def embed(
    model: FloatModel,
    ids: Sequence[int],
    tap: Tap,
    dtype: type[np.float32] | type[np.float64] = np.float32,
) -> Array:
    """[L, d]: what the first layer reads."""
    shape = model.architecture
    tokens = np.asarray(ids)
    if tokens.ndim != 1 or not 1 <= len(tokens) <= shape.max_tokens:
        raise UsageError(f"a sentence has 1 to {shape.max_tokens} tokens, not {tokens.shape}")
    if tokens.dtype.kind not in "iu" or tokens.min() < 0 or tokens.max() >= shape.n_vocab:
        raise UsageError(f"token ids are whole numbers from 0 to {shape.n_vocab - 1}")
    first = shape.position_offset
    h: Array = model.word[tokens].astype(dtype) + model.position[first : first + len(tokens)]
    tap("h_0", EMBEDDING, h)
    y = normalise(h, model.norm.eps)
    tap("y_0", EMBEDDING, y)
    return _gained(y, model.norm)


def run_layer(model: FloatModel, index: int, x: Array, tap: Tap) -> Array:
    """[L, d] to [L, d]: one layer."""
    layer = model.layers[index]
    n_heads, head_dim = model.architecture.n_heads, model.architecture.head_dim
    # [L, 3 d] -> [L, 3, H, dh] -> [3, H, L, dh]
    q, k, v = _apply(layer.qkv, x).reshape(len(x), 3, n_heads, head_dim).transpose(1, 2, 0, 3)
    tap("q", index, q)
    tap("k", index, k)
    tap("v", index, v)
    scores = (q @ k.transpose(0, 2, 1)) * (head_dim**-0.5)
    tap("scores", index, scores)
    context = softmax(scores) @ v
    tap("context", index, context)
    h = x + _apply(layer.out, context.transpose(1, 0, 2).reshape(x.shape))
    tap("h_1", index, h)
    y = normalise(h, layer.norm_1.eps)
    tap("y_1", index, y)
    x = _gained(y, layer.norm_1)
    up = _apply(layer.up, x)
    tap("up", index, up)
    h = x + _apply(layer.down, gelu(up))
    tap("h_2", index, h)
    y = normalise(h, layer.norm_2.eps)
    tap("y_2", index, y)
    return _gained(y, layer.norm_2)


def classify(model: FloatModel, hidden: Array, tap: Tap) -> Array | None:
    """[L, d] to [n_labels]; None for a bare encoder."""
    if model.head is None:
        return None
    last = len(model.layers)
    pre = _apply(model.head.dense, hidden[0])
    tap("pooled_pre", last, pre)
    pooled = np.tanh(pre) if model.head.activation == "tanh" else np.maximum(pre, 0)
    logits = _apply(model.head.out, pooled)
    tap("logits", last, logits)
    return logits


def softmax(scores: Array) -> Array:
    """Over the last axis."""
    e = np.exp(scores - scores.max(-1, keepdims=True))
    normed: Array = e / e.sum(-1, keepdims=True)
    return normed


def normalise(h: Array, eps: float) -> Array:
    """Mean 0 and variance 1 over the last axis, but for eps."""
    centred = h - h.mean(-1, keepdims=True)
    variance = np.mean(centred * centred, -1, keepdims=True)
    normed: Array = centred / np.sqrt(variance + eps)
    return normed


def gelu(x: Array) -> Array:
    """x Phi(x), Phi the normal distribution function: the exact form, not that with tanh."""
    value: Array = (0.5 * x * (1 + erf(x * math.sqrt(0.5)))).astype(x.dtype)
    return value


def gelu_slope(x: Array) -> Array:
    """The derivative of `gelu`: Phi(x) + x phi(x)."""
    wide = x.astype(np.float64)
    density = np.exp(-0.5 * wide * wide) * math.sqrt(0.5 / math.pi)
    value: Array = (0.5 * (1 + erf(wide * math.sqrt(0.5))) + wide * density).astype(x.dtype)
    return value


_ERF_STEP: Final = 2.0**-9
_ERF_END: Final = 6.0  # 1 - erf(6) is 2e-17, below half a unit of float64
_ERF_KNOTS: Final = np.arange(int(_ERF_END / _ERF_STEP) + 2) * _ERF_STEP
_ERF_VALUES: Final = np.array([math.erf(knot) for knot in _ERF_KNOTS])
_ERF_SLOPES: Final = np.exp(-(_ERF_KNOTS**2)) * (2 / math.sqrt(math.pi)) * _ERF_STEP


def erf(x: Array) -> npt.NDArray[np.float64]:
    """The error function in float64, within 2e-13: cubic Hermite pieces between exact knots.

    Their error is at most step^4 / 384 times the largest fourth derivative of erf, 4.41.
    """
    size = np.minimum(np.abs(x.astype(np.float64)), _ERF_END)
    place = size / _ERF_STEP
    knot = place.astype(np.intp)
    t = place - knot
    left, right = _ERF_VALUES[knot], _ERF_VALUES[knot + 1]
    rise, slope_left, slope_right = right - left, _ERF_SLOPES[knot], _ERF_SLOPES[knot + 1]
    # left + t slope_left + t^2 (3 rise - 2 slope_left - slope_right) + t^3 (...)
    cubic = slope_left + slope_right - 2 * rise
    square = rise - slope_left - cubic
    value: npt.NDArray[np.float64] = left + t * (slope_left + t * (square + t * cubic))
    return np.copysign(value, x, dtype=np.float64)


def _apply(linear: Linear, x: Array) -> Array:
    weight = linear.weight.astype(x.dtype, copy=False)
    value: Array = x @ weight + linear.bias.astype(x.dtype, copy=False)
    return value


def _gained(y: Array, norm: Norm) -> Array:
    value: Array = y * norm.gain.astype(y.dtype, copy=False) + norm.bias.astype(y.dtype, copy=False)
    return value


def _ignore(name: str, layer: int, value: Array) -> None:
    """The tap that nobody reads."""
