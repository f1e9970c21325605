"""Models whose matrices are signs and one level per output column, as integers of Z_2^16.

For token ids t_0..t_{L-1} (`~` rounds to one of the two integers around; tables on grids as in
`tables_of`; x, q, k, v, c, g and h are integers):

    h = word[t_i] + position[i];       x = ~(h / rms(h)) in steps of 2^-x_fraction
    per layer:  q, k, v = ~split(x @ qkv);  e = exp(~(q k^T + score));  c = ~(e v / sum of e)
                h = c @ out + x gain_1;      x = ~(h / rms(h))
                g = gelu(~(x @ up));         h = g @ down + x gain_2;      x = ~(h / rms(h))
    head:       logits = activation(~(x[0] @ dense)) @ out

Norms do not subtract the mean, and their gains and biases are in the matrices: a network is
trained in this form (`training/distil_w1a4.py`), not converted to it.

Bits. Signs: 1. What enters a matrix or a product of attention: about 4, sign included. That is
what scales aim at and not a limit; nothing is clamped, and outliers reach further. Parts within
+-8 and largest values are of a network of six layers, 384 wide, trained on film reviews:

    x       in steps of 1/4 of the row's rms: 97 %, 99
    q, k    z / 2^6: 99 %, 27
    v       z / 2^6: 98 %, 32
    c       in steps of 1/2 of v's: 94 %
    g       in steps of 1/8, one of the 32 values of its table: 99 %, 45
    e       one of 32 values, to 169; it stands for 5 bits of a score

Indexes: 5 bits for e^s and GELU, 8 for 1 / sum and the head, 10 for 1 / rms. More than that have
levels, gains, biases, the embedding and the head; they cost nothing: a share is a ring element
whatever it is a share of.

Invariant: every weight of the four matrices of a layer is plus or minus its column's level, and
levels are whole and positive.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, final

import numpy as np
import numpy.typing as npt

from veilrun.errors import UsageError
from veilrun.mpc.model import grids
from veilrun.mpc.model.architecture import Architecture
from veilrun.mpc.model.quantised import (
    SECRET_EMBEDDING,
    IntegerMatrix,
    Integers,
    PrivateModel,
    PublicModel,
    QuantisedModel,
)
from veilrun.mpc.operations import NO_ANCHOR
from veilrun.mpc.profile import W1A4, Profile
from veilrun.mpc.tables import Table

EXP_WINDOW: Final = 20.0
"""Nats that a score may span, in the whole window."""

EXP_TOP: Final = 6.0
"""Nats above the window's middle, from where e^s no longer grows."""

CONTEXT_FRACTION: Final = 1
"""Fraction bits of the context, in units of the attention values."""


@final
@dataclass(frozen=True, slots=True, eq=False, repr=False)
class BinaryMatrix:
    """`x @ (level * (1 if is_positive else -1)) + bias`.

    is_positive: bool [n_in, n_out]. level, bias: [n_out].
    """

    is_positive: npt.NDArray[np.bool_]
    level: Integers
    bias: Integers


@final
@dataclass(frozen=True, slots=True, eq=False, repr=False)
class WholeMatrix:
    """`x @ weight + bias`, of as many bits as it takes: the head's."""

    weight: Integers
    bias: Integers


@final
@dataclass(frozen=True, slots=True, eq=False, repr=False)
class BinaryLayer:
    """One layer. qkv: d -> 3 d. score: [H], added to all scores of a head.

    gain_1, gain_2: [d], of x beside `out` and `down`.
    neurons, gelu_windows: how many columns of `up` share each GELU table, and the real width of
        the window that the ring's 2^16 steps span there.
    """

    qkv: BinaryMatrix
    score: Integers
    out: BinaryMatrix
    gain_1: Integers
    up: BinaryMatrix
    neurons: tuple[int, ...]
    gelu_windows: tuple[float, ...]
    down: BinaryMatrix
    gain_2: Integers


@final
@dataclass(frozen=True, slots=True, eq=False, repr=False)
class BinaryModel:
    """The whole model: a classifier with a private embedding.

    word: [n_vocab, d]. position: [max_tokens of the architecture, d].
    head_window: the real width of the window of the head's activation.
    output_scale: integers per unit of a logit.
    max_tokens, n_sentences: of the texts that it was trained on.
    """

    architecture: Architecture
    word: Integers
    position: Integers
    layers: tuple[BinaryLayer, ...]
    head_dense: WholeMatrix
    head_window: float
    head_out: WholeMatrix
    output_scale: float
    max_tokens: int
    n_sentences: int


def quantise_binary(model: BinaryModel, profile: Profile = W1A4) -> QuantisedModel:
    """The model as the protocol runs it.

    Raises:
        UsageError: a level below 1, a matrix of another shape, or one that needs other widths.
    """
    matrices = {
        "head_dense": _whole(model.head_dense, "head_dense"),
        "head_out": _whole(model.head_out, "head_out"),
    }
    constants = {"position": model.position.astype(np.int64)}
    for number, layer in enumerate(model.layers):
        name = f"layer_{number}"
        for part in ("qkv", "out", "up", "down"):
            matrices[f"{name}.{part}"] = _dense(getattr(layer, part), f"{name}.{part}")
        matrices[f"{name}.residual_1"] = _gain(layer.gain_1, f"{name}.residual_1")
        matrices[f"{name}.residual_2"] = _gain(layer.gain_2, f"{name}.residual_2")
        constants[f"{name}.score"] = layer.score.astype(np.int64).reshape(-1, 1, 1)
    public = PublicModel(
        model.architecture,
        profile,
        SECRET_EMBEDDING,
        ((NO_ANCHOR,) * model.architecture.n_heads,) * len(model.layers),
        tuple(layer.neurons for layer in model.layers),
        tables_of(model, profile),
        model.output_scale,
        model.max_tokens,
        model.n_sentences,
    )
    private = PrivateModel(matrices, constants, _narrow(model.word, "word"))
    return QuantisedModel(public, private, None)


def tables_of(model: BinaryModel, profile: Profile = W1A4) -> dict[str, Table]:
    """All tables of the network, by name."""
    activation = model.architecture.head_activation
    if activation is None:
        raise UsageError("only a classifier has a form with binary matrices")
    norm = norm_table(model.architecture.hidden, profile)
    tables: dict[str, Table] = {
        "norm": norm,
        "reciprocal": reciprocal_table(profile),
        "head": grids.head(profile, model.head_window, activation),
    }
    for number, layer in enumerate(model.layers):
        name = f"layer_{number}"
        tables |= {
            f"{name}.exp": exp_table(profile),
            f"{name}.norm_1": norm,
            f"{name}.norm_2": norm,
        }
        for group, window in enumerate(layer.gelu_windows):
            tables[f"{name}.gelu_{group}"] = grids.gelu(profile, window)
    return tables


def exp_table(profile: Profile = W1A4) -> Table:
    """e^s; the same for every layer."""
    return grids.exp(profile, EXP_WINDOW, EXP_TOP)


def reciprocal_table(profile: Profile = W1A4) -> Table:
    """1 / (sum of e)."""
    return grids.reciprocal(profile, CONTEXT_FRACTION)


def norm_table(n_elements: int, profile: Profile = W1A4) -> Table:
    """1 / rms, from the sum of squares."""
    return grids.inverse_norm(profile, n_elements, 0.0)


def _dense(matrix: BinaryMatrix, name: str) -> IntegerMatrix:
    if matrix.level.min() < 1:
        raise UsageError(f"{name}: a column whose level is {matrix.level.min()}, below 1")
    level = _narrow(matrix.level, name)
    weight = np.where(matrix.is_positive, level, -level)
    return IntegerMatrix(weight, matrix.bias.astype(np.int64), True)


def _whole(matrix: WholeMatrix, name: str) -> IntegerMatrix:
    return IntegerMatrix(_narrow(matrix.weight, name), matrix.bias.astype(np.int64), True)


def _gain(gain: Integers, name: str) -> IntegerMatrix:
    """A diagonal map that takes no mean away."""
    return IntegerMatrix(_narrow(np.stack([gain, np.zeros_like(gain)]), name), None, False)


def _narrow(values: Integers, name: str) -> npt.NDArray[np.int32]:
    if values.size and np.abs(values).max() >= 2**15:
        raise UsageError(f"{name}: a number that 16 bits do not hold")
    return values.astype(np.int32)
