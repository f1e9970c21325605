"""A BERT classifier with 1-bit matrices, as torch trains it: the integers of `mpc.model.binary`.

Every value is a whole number held in a float, computed as the plaintext twin computes it: the
same tables, the same shifts, and rounding up or down by chance. `share` is how far matrices have
gone from their latent weights (0) to signs and levels (1).

Invariants: with `share` 1 and rounding to the nearest, in float64, the logits are the twin's to
the bit, as long as nothing leaves its window; what `export` gives is what was computed with,
nothing is rounded again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from binary_parts import Gain, Rounded, Rounding, SignLinear, Table, WholeLinear, whole
from torch import Tensor, nn

from veilrun.mpc.model import binary
from veilrun.mpc.model.architecture import Architecture
from veilrun.mpc.model.binary import BinaryLayer, BinaryModel
from veilrun.mpc.model.grids import gelu as gelu_table
from veilrun.mpc.model.grids import head as head_table
from veilrun.mpc.profile import W1A4

RINGS, WINDOWS = W1A4.rings, W1A4.windows
X_STEPS = 2.0**W1A4.x_fraction  # per 1 of a normalised row
GELU_STEPS = 2.0**W1A4.gelu_fraction
CONTEXT_STEPS = 2.0**binary.CONTEXT_FRACTION  # per 1 of an attention value
SCORE_SHIFT = RINGS.linear - RINGS.scores
SCORES_PER_NAT = 2.0**RINGS.scores / binary.EXP_WINDOW
SCORE_UNIT = 32 * SCORES_PER_NAT  # of a head's constant, which must move further than weights
SPARE = 20  # steps of scores, 0.4 nats; a row sum just past its end comes back near 0
SUM_NATS = (5.0, 7.0)  # what the sum of e^s should be, before s stops at the table's top
ROOM = 0.7  # the part of a window that training keeps values within
MOST_NATS = binary.EXP_TOP + 1.8 + math.log(ROOM)  # 1.8: the room above the top in the table

Start = tuple[np.ndarray, np.ndarray, np.ndarray | float]


@dataclass(frozen=True)
class LayerStart:
    """What a layer starts from: real matrices, and integers per 1 of their outputs.

    A matrix is (weight [n_in, n_out], bias [n_out], unit [n_out] or one for all). score: [H],
    integers. gain_1, gain_2: [d], and the units are those of `out` and `down`. value_unit:
    integers per 1 of v, once it is shifted.
    """

    qkv: Start
    score: np.ndarray
    out: Start
    gain_1: np.ndarray
    up: Start
    neurons: tuple[int, ...]
    gelu_windows: tuple[float, ...]
    down: Start
    gain_2: np.ndarray
    value_unit: float


class Norm(nn.Module):
    """h / rms(h), in steps."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.table = Table(binary.norm_table(width), WINDOWS.variance, is_signed=False)

    def forward(self, h: Tensor, run: Run) -> Tensor:
        squares = h.square().sum(-1, keepdim=True)
        run.penalise(h, ROOM * 2.0 ** (RINGS.hidden - 2))
        run.penalise(squares, ROOM * 2.0**WINDOWS.variance)
        y = h * self.table(squares, run.rounding)
        x: Tensor = run.rounded(y, W1A4.wide_shift)
        run.rows.append(x / X_STEPS)
        return x


@dataclass
class Run:
    """One pass. mask: [B, L], 1 where there is a token. rows: normalised, after every norm.

    penalty: for values beyond their windows, per token. spread: for row sums that are far from
    where their grid is fine, likewise.
    """

    rounding: Rounding
    share: float
    mask: Tensor
    rows: list[Tensor] = field(default_factory=list)
    penalty: Tensor | float = 0.0
    spread: Tensor | float = 0.0

    def rounded(self, z: Tensor, shift: int) -> Tensor:
        return Rounded.apply(z, 2.0**-shift, self.rounding.noise(z))

    def penalise(self, x: Tensor, limit: float) -> None:
        """Keep every value within a limit. x: [B, L, ...] or [B, H, L, ...]."""
        if torch.is_grad_enabled():
            self.penalty = self.penalty + self._beyond(x, limit)

    def centre(self, x: Tensor, limit: float) -> None:
        """The same of what only should be within it."""
        if torch.is_grad_enabled():
            self.spread = self.spread + self._beyond(x, limit)

    def _beyond(self, x: Tensor, limit: float) -> Tensor:
        excess = (x.abs() / limit - 1).relu().log1p()
        rows = excess.sum(-1) if x.dim() == 3 else excess.sum((1, 3))
        return (rows * self.mask).sum() / self.mask.sum()


class Layer(nn.Module):
    """One layer."""

    def __init__(self, start: LayerStart, n_heads: int) -> None:
        super().__init__()
        width = len(start.gain_1)
        self.n_heads = n_heads
        self.neurons, self.gelu_windows = start.neurons, start.gelu_windows
        self.qkv = SignLinear(*start.qkv, X_STEPS)
        self.score = nn.Parameter(torch.tensor(start.score / SCORE_UNIT, dtype=torch.float32))
        self.out = SignLinear(*start.out, start.value_unit * CONTEXT_STEPS)
        self.gain_1 = Gain(start.gain_1, float(start.out[2]) / X_STEPS)
        self.up = SignLinear(*start.up, X_STEPS)
        self.down = SignLinear(*start.down, GELU_STEPS)
        self.gain_2 = Gain(start.gain_2, float(start.down[2]) / X_STEPS)
        self.exp = Table(binary.exp_table(), RINGS.scores)
        self.reciprocal = Table(binary.reciprocal_table(), WINDOWS.row_sum, is_signed=False)
        self.gelus = nn.ModuleList(
            Table(gelu_table(W1A4, window), WINDOWS.gelu) for window in start.gelu_windows
        )
        self.norm_1, self.norm_2 = Norm(width), Norm(width)

    def forward(self, x: Tensor, run: Run) -> Tensor:
        h = self.out(self.attention(x, run), run.share) + self.gain_1(x)
        x = self.norm_1(h, run)
        z = self.up(x, run.share)
        run.penalise(z, ROOM * 2.0 ** (WINDOWS.gelu - 1))
        parts = zip(z.split(self.neurons, -1), self.gelus, strict=True)
        hidden = torch.cat([table(part, run.rounding) for part, table in parts], -1)
        return self.norm_2(self.down(hidden, run.share) + self.gain_2(x), run)

    def attention(self, x: Tensor, run: Run) -> Tensor:
        """The context [B, L, d]."""
        n, length, width = x.shape
        z = self.qkv(x, run.share)
        qk = run.rounded(z[..., : 2 * width], SCORE_SHIFT)
        v = run.rounded(z[..., 2 * width :], W1A4.values_shift)
        run.penalise(v, ROOM * 2.0 ** (RINGS.values - 2))
        q, k = qk.view(n, length, 2, self.n_heads, -1).permute(2, 0, 3, 1, 4)
        v = v.view(n, length, self.n_heads, -1).transpose(1, 2)
        seen = run.mask[:, None, None, :]
        scores = q @ k.transpose(2, 3) + self.whole_score()[:, None, None]
        run.penalise(scores * seen, ROOM * 2.0 ** (RINGS.scores - 1))
        self._centre_sums(scores, seen, run)
        e = self.exp(scores, run.rounding) * seen
        reciprocal = self.reciprocal(e.sum(-1, keepdim=True), run.rounding)
        context = e @ v
        run.penalise(context, ROOM * 2.0 ** (RINGS.hidden - 2))
        context = run.rounded(context * reciprocal, W1A4.wide_shift)
        return context.transpose(1, 2).reshape(n, length, width)

    def whole_score(self) -> Tensor:
        half = torch.tensor(0.5, dtype=self.score.dtype)
        return Rounded.apply(self.score, SCORE_UNIT, half)

    def _centre_sums(self, scores: Tensor, seen: Tensor, run: Run) -> None:
        """Of e^s as it would be without an end, which tells where to go even beyond it."""
        nats = (scores / SCORES_PER_NAT + torch.log(seen)).logsumexp(-1, keepdim=True)
        low, high = SUM_NATS
        run.centre(nats - (low + high) / 2, (high - low) / 2)
        run.penalise((nats - MOST_NATS).relu() + 1, 1.0)

    def export(self) -> BinaryLayer:
        return BinaryLayer(
            qkv=self.qkv.export(),
            score=whole(self.whole_score()),
            out=self.out.export(),
            gain_1=whole(self.gain_1.whole_gain()),
            up=self.up.export(),
            neurons=self.neurons,
            gelu_windows=self.gelu_windows,
            down=self.down.export(),
            gain_2=whole(self.gain_2.whole_gain()),
        )


@dataclass(frozen=True)
class Frame:
    """Coordinates of a norm's output, gain LN(h) + bias, as rows y: y = scale LN(h) / rms, and so
    the output is back y + bias, but for a factor of each row.
    """

    scale: np.ndarray
    back: np.ndarray
    bias: np.ndarray


@dataclass(frozen=True)
class NetworkStart:
    """What a network starts from.

    frames: the coordinates of every norm, in the order of the network. word, position: integers.
    head_dense, head_out: as in a layer.
    """

    architecture: Architecture
    frames: tuple[Frame, ...]
    word: np.ndarray
    position: np.ndarray
    layers: tuple[LayerStart, ...]
    head_dense: Start
    head_window: float
    head_out: Start


class BinaryNetwork(nn.Module):
    """The classifier. The embedding stays as it is."""

    word: Tensor
    position: Tensor

    def __init__(self, start: NetworkStart) -> None:
        super().__init__()
        shape = start.architecture
        self.architecture = shape
        self.head_window = start.head_window
        self.register_buffer("word", torch.tensor(start.word, dtype=torch.float32))
        self.register_buffer("position", torch.tensor(start.position, dtype=torch.float32))
        self.norm = Norm(shape.hidden)
        self.layers = nn.ModuleList(Layer(layer, shape.n_heads) for layer in start.layers)
        self.head_dense = WholeLinear(*start.head_dense, X_STEPS)
        activation = shape.head_activation or ""
        self.head = Table(head_table(W1A4, start.head_window, activation), WINDOWS.head)
        self.head_out = WholeLinear(*start.head_out, GELU_STEPS)
        self.output_scale = float(start.head_out[2])

    def forward(self, ids: Tensor, run: Run) -> Tensor:
        """The logits [B, n_labels], as integers; `output_scale` of them are 1."""
        x = self.norm(self.word[ids] + self.position[: ids.shape[1]], run)
        for layer in self.layers:
            x = layer(x, run)
        z = self.head_dense(x[:, :1])
        run.penalise(z.expand(-1, x.shape[1], -1), ROOM * 2.0 ** (WINDOWS.head - 1))
        logits: Tensor = self.head_out(self.head(z[:, 0], run.rounding))
        return logits

    @torch.no_grad()
    def lower_row_sums(self) -> None:
        """Make room for sums larger than training saw; softmax does not see it."""
        for layer in self.layers:
            layer.score -= SPARE / SCORE_UNIT

    def export(self, max_tokens: int, n_sentences: int) -> BinaryModel:
        return BinaryModel(
            self.architecture,
            whole(self.word),
            whole(self.position),
            tuple(layer.export() for layer in self.layers),
            self.head_dense.export(),
            self.head_window,
            self.head_out.export(),
            self.output_scale,
            max_tokens,
            n_sentences,
        )
