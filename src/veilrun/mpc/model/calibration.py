"""The range of every intermediate value of a model over real sentences, and the key shifts.

A protocol on shares has fixed windows and no way to look: a value outside its window is not an
error but a wrong answer. So the windows are chosen from what the model computes in the clear.

The key shift. Softmax over keys does not change when a row of scores is moved as a whole, so
all keys of one head may get the same vector added: q.(k + shift) moves row q by q.shift. The
protocol looks 1 / sum(exp(scores)) up on one grid for all rows; the shift is fitted so that
log-sum-exp (LSE) varies as little as possible from row to row. It costs nothing to run: the
shift goes into the bias of the keys. A constant per head moves all its rows alike; it is left
to the caller, and no range here contains one.

The fit minimises the sum of fourth powers of LSE's distance from its middle, by reweighted
least squares with a small ridge, and keeps the shift of the smallest spread on the way. Why
fourth powers: squares leave the rare rows far out that decide a window; the maximum itself
fits a few rows of the calibration set, and its spread on other sentences is wider again.

The anchor. A head that mostly attends to the token before, or to the first one, has a score
there that is nearly its LSE. Its rows are taken relative to that score, which softmax does not
see either, where that makes LSE clearly more alike than the best shift does; then it has no
shift, which would cancel.

Invariant: one pass over the sentences, layer by layer, in float32; every minimum and maximum
is over all tokens, exactly as computed. Memory: the width of the model, and twice that for the
rows of the fit, per token of all sentences.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from veilrun.errors import UsageError
from veilrun.mpc.model.architecture import FloatModel
from veilrun.mpc.model.reference import Array, classify, embed, gelu_slope, run_layer
from veilrun.mpc.operations import FIRST, NO_ANCHOR, PREVIOUS

Float64 = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

UP_EDGES: Final = np.arange(-16.0, 16.0 + 0.125, 0.125)
"""Edges of the histogram of FFN pre-activations; the outermost bins also count what is beyond."""

_RIDGE: Final = 1e-3  # of the mean square of an entry of q
_POWER: Final = 4
_FIT_STEPS: Final = 6  # more change no spread of MiniLM on SST-2 by 0.001 nat
_MIN_WEIGHT: Final = 1e-4
_ANCHOR_GAIN: Final = 0.6  # an anchor is public, so it must be worth it


@dataclass(frozen=True, slots=True, eq=False)
class LayerRanges:
    """One layer. `x_max` is the largest |x|; `x_low` and `x_high` are signed.

    anchors: [H], of `operations.ANCHORS`. What follows is relative to them.
    key_shift: [H, head_dim], to be added to every key of the head; a secret of the model.
    lse_min, lse_max: [H], of log sum_k exp(score) in nats, with the shift.
    score_low, score_high: [H], of q.k / sqrt(head_dim) with the shift, before any constant.
    plain_*: [H], the same without the shift.
    q_max, k_max, v_max, context_max: over all heads; k_max with the shift.
    h_1, h_2: the residual sums before the two norms. variance: of one token's entries, before
        eps (divisor d).
    up: FFN pre-activations. up_counts: their histogram over UP_EDGES. up_reach: [intermediate],
        each neuron's largest |pre-activation|.
    gelu_slope: mean of GELU's derivative over them.
    """

    anchors: tuple[str, ...]
    key_shift: Float64
    lse_min: Float64
    lse_max: Float64
    score_low: Float64
    score_high: Float64
    plain_lse_min: Float64
    plain_lse_max: Float64
    plain_score_low: Float64
    plain_score_high: Float64
    q_max: float
    k_max: float
    v_max: float
    context_max: float
    h_1_max: float
    variance_1_min: float
    variance_1_max: float
    h_2_max: float
    variance_2_min: float
    variance_2_max: float
    up_low: float
    up_high: float
    up_counts: Counts
    up_reach: Float64
    gelu_slope: float

    @property
    def score_max(self) -> Float64:
        """[H]: the largest |score| with the shift, before any constant."""
        return np.maximum(-self.score_low, self.score_high)

    @property
    def lse_spread(self) -> Float64:
        """[H], in nats."""
        return self.lse_max - self.lse_min

    @property
    def plain_lse_spread(self) -> Float64:
        """[H], in nats, without the shift."""
        return self.plain_lse_max - self.plain_lse_min

    @property
    def up_max(self) -> float:
        """The largest |FFN pre-activation|."""
        return max(-self.up_low, self.up_high)


@dataclass(frozen=True, slots=True, eq=False)
class Ranges:
    """What a model computes over the calibration sentences.

    max_tokens: of the longest sentence.
    h_0: the sum before the first norm. variance: as in a layer.
    head: before the head's activation. head and logit are 0 for a bare encoder.
    """

    n_sentences: int
    n_tokens: int
    max_tokens: int
    h_0_max: float
    variance_0_min: float
    variance_0_max: float
    layers: tuple[LayerRanges, ...]
    head_low: float
    head_high: float
    logit_max: float

    @property
    def head_max(self) -> float:
        """The largest |value| before the head's activation."""
        return max(-self.head_low, self.head_high)


def calibrate(
    model: FloatModel,
    sentences: Iterable[Sequence[int]],
    progress: Callable[[int, int], None] | None = None,
) -> Ranges:
    """Run every sentence (token ids, special tokens included) and record the ranges.

    progress: called with the layers done and their number.

    Raises:
        UsageError: there are no sentences, or one does not fit the model.
    """
    first, head = _Watch(), _Watch()
    rows = [embed(model, ids, first) for ids in sentences]
    if not rows:
        raise UsageError("calibration needs sentences, the more the better; none were given")
    n_layers = len(model.layers)
    layers = []
    for index in range(n_layers):
        layers.append(_calibrate_layer(model, index, rows))
        if progress is not None:
            progress(index + 1, n_layers)
    for x in rows:
        classify(model, x, head)
    return Ranges(
        n_sentences=len(rows),
        n_tokens=sum(map(len, rows)),
        max_tokens=max(map(len, rows)),
        h_0_max=first.largest("h_0"),
        variance_0_min=first.lows["variance of h_0"],
        variance_0_max=first.highs["variance of h_0"],
        layers=tuple(layers),
        head_low=head.lows.get("pooled_pre", 0.0),
        head_high=head.highs.get("pooled_pre", 0.0),
        logit_max=head.largest("logits") if model.head else 0.0,
    )


def _calibrate_layer(model: FloatModel, index: int, rows: list[Array]) -> LayerRanges:
    """Takes `rows` through the layer, in place."""
    watch = _LayerWatch()
    for number, x in enumerate(rows):
        rows[number] = run_layer(model, index, x, watch)
    return watch.ranges()


@dataclass(slots=True)
class _Watch:
    """A tap that keeps the extremes of everything, and of the variance of every sum."""

    lows: dict[str, float] = field(default_factory=dict)
    highs: dict[str, float] = field(default_factory=dict)

    def __call__(self, name: str, layer: int, value: Array) -> None:
        self.see(name, value)
        if name.startswith("h_"):
            self.see(f"variance of {name}", value.var(-1, dtype=np.float64))

    def see(self, name: str, value: Array) -> None:
        """Widen the interval of `name`."""
        self.lows[name] = min(float(value.min()), self.lows.get(name, math.inf))
        self.highs[name] = max(float(value.max()), self.highs.get(name, -math.inf))

    def largest(self, name: str) -> float:
        """The largest absolute value of `name`."""
        return max(-self.lows[name], self.highs[name])


@dataclass(slots=True)
class _LayerWatch(_Watch):
    """A tap for one layer. Of every row of scores it keeps what any shift leaves to compute.

    queries: [H, L, head_dim] each, divided by sqrt(head_dim).
    levels: [5, H, L] each: a row's LSE, its smallest and its largest score, that of the token
        before (of itself, for the first), and that of the first token.
    keys: [2, H, head_dim] each: the extremes of every entry of a sentence's keys.
    """

    queries: list[Array] = field(default_factory=list)
    levels: list[Float64] = field(default_factory=list)
    keys: list[Array] = field(default_factory=list)
    up_counts: Counts = field(default_factory=lambda: np.zeros(len(UP_EDGES) - 1, np.int64))
    up_reach: Float64 = field(default_factory=lambda: np.zeros(1))
    slope_sum: float = 0.0

    def __call__(self, name: str, layer: int, value: Array) -> None:
        _Watch.__call__(self, name, layer, value)
        match name:
            case "q":
                self.queries.append(value * value.shape[-1] ** -0.5)
            case "k":
                self.keys.append(np.stack([value.min(1), value.max(1)]))
            case "scores":
                self.levels.append(_levels(value))
            case "up":
                inside = np.clip(value, UP_EDGES[0], UP_EDGES[-1])
                self.up_counts += np.histogram(inside, UP_EDGES)[0]
                self.up_reach = np.maximum(self.up_reach, np.abs(value).max(0))
                self.slope_sum += float(gelu_slope(value).sum(dtype=np.float64))

    def ranges(self) -> LayerRanges:
        """Fit the shift; then every range follows exactly from what was kept."""
        queries = np.concatenate(self.queries, 1)
        lse, low, high, *anchors = np.concatenate(self.levels, 2)
        shift = np.stack([_fit_shift(*head) for head in zip(queries, lse, strict=True)])
        moved = (queries @ shift[..., None])[..., 0]
        chosen = tuple(
            _choose_anchor(*head) for head in zip(lse, lse + moved, *anchors, strict=True)
        )
        for head, anchor in enumerate(chosen):
            if anchor != NO_ANCHOR:
                shift[head] = 0.0
                moved[head] = -anchors[0 if anchor == PREVIOUS else 1][head]
        key_low = np.min([one[0] for one in self.keys], 0) + shift
        key_high = np.max([one[1] for one in self.keys], 0) + shift
        return LayerRanges(
            anchors=chosen,
            key_shift=shift,
            lse_min=(lse + moved).min(1),
            lse_max=(lse + moved).max(1),
            score_low=(low + moved).min(1),
            score_high=(high + moved).max(1),
            plain_lse_min=lse.min(1),
            plain_lse_max=lse.max(1),
            plain_score_low=low.min(1),
            plain_score_high=high.max(1),
            q_max=self.largest("q"),
            k_max=max(-float(key_low.min()), float(key_high.max())),
            v_max=self.largest("v"),
            context_max=self.largest("context"),
            h_1_max=self.largest("h_1"),
            variance_1_min=self.lows["variance of h_1"],
            variance_1_max=self.highs["variance of h_1"],
            h_2_max=self.largest("h_2"),
            variance_2_min=self.lows["variance of h_2"],
            variance_2_max=self.highs["variance of h_2"],
            up_low=self.lows["up"],
            up_high=self.highs["up"],
            up_counts=self.up_counts,
            up_reach=self.up_reach,
            gelu_slope=self.slope_sum / int(self.up_counts.sum()),
        )


def _levels(scores: Array) -> Float64:
    """[5, H, L]: of each row of [H, L, L] what `_LayerWatch.levels` says."""
    wide = scores.astype(np.float64)
    high = wide.max(-1)
    lse = high + np.log(np.exp(wide - high[..., None]).sum(-1))
    rows = np.arange(wide.shape[-1])
    before = wide[:, rows, np.maximum(rows - 1, 0)]
    return np.stack([lse, wide.min(-1), high, before, wide[:, :, 0]])


def _choose_anchor(lse: Float64, shifted: Float64, before: Float64, first: Float64) -> str:
    """The anchor of one head, [N] each; shifted: LSE with the best key shift."""
    limit = _ANCHOR_GAIN * np.ptp(shifted)
    spread, anchor = min((np.ptp(lse - before), PREVIOUS), (np.ptp(lse - first), FIRST))
    return anchor if spread < limit else NO_ANCHOR


def _fit_shift(queries: Array, lse: Float64) -> Float64:
    """[head_dim]: the shift of one head. queries: [N, head_dim], over sqrt(head_dim). lse: [N].

    No shift at all is among the candidates, so the spread never grows on these rows.
    """
    ones = np.ones((len(queries), 1))
    features = np.concatenate([queries.astype(np.float64), ones], 1)
    ridge = np.full(features.shape[1], _RIDGE * np.mean(features[:, :-1] ** 2))
    ridge[-1] = 0.0  # the constant is free
    best, smallest = np.zeros(features.shape[1]), np.ptp(lse)
    fitted = best
    weights = np.ones(len(lse))
    for step in range(_FIT_STEPS):
        weighted = features * weights[:, None]
        gram = weighted.T @ features + np.diag(ridge * weights.sum())
        solved = np.linalg.lstsq(gram, weighted.T @ lse, rcond=None)[0]
        # A whole step to a reweighted solution overshoots; 1 / (power - 1) is Newton's length.
        fitted = solved if step == 0 else fitted + (solved - fitted) / (_POWER - 1)
        rest = lse - features @ fitted
        if np.ptp(rest) < smallest:
            best, smallest = fitted, np.ptp(rest)
        distance = np.abs(rest) / max(float(np.abs(rest).max()), 1e-30)
        weights = np.maximum(distance, _MIN_WEIGHT) ** (_POWER - 2)
    return -best[:-1]
