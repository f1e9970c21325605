"""A model as integers: what is public of it, and what its owner alone has.

Names of matrices, as the network calls them: layer_<i>.{qkv, out, residual_1, up, down,
residual_2}, and head_dense, head_out, or pool. Of constants: position, layer_<i>.score. Of
tables: layer_<i>.{exp, gelu_<group>, norm_1, norm_2}, norm, reciprocal, head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, final

import numpy as np
import numpy.typing as npt

from veilrun.mpc import ring
from veilrun.mpc.model.architecture import Architecture
from veilrun.mpc.profile import Profile
from veilrun.mpc.shares import Array, dtype_of
from veilrun.mpc.tables import Table
from veilrun.mpc.weights import Dense, Exact, ExactResidual, Matrix, Residual

Integers = npt.NDArray[np.int64]

SECRET_EMBEDDING: Final = "secret"  # noqa: S105 (a kind, not a password)
CLIENT_EMBEDDING: Final = "client"


@final
@dataclass(frozen=True, slots=True, eq=False)
class PublicModel:
    """What every party knows: shapes, widths, tables; no weight.

    embedding: "secret", where the table is looked up privately, or "client", where the table is
        public and the client normalises its rows itself.
    anchors: per layer and head, what scores are taken relative to (`operations.ANCHORS`).
    neurons: per layer, how many neurons share each GELU table; the owner orders them so.
    output_scale: integers per unit of a logit, or of a summed hidden state.
    max_tokens, n_sentences: of the texts that the ranges come from.
    """

    architecture: Architecture
    profile: Profile
    embedding: str
    anchors: tuple[tuple[str, ...], ...]
    neurons: tuple[tuple[int, ...], ...]
    tables: Mapping[str, Table]
    output_scale: float
    max_tokens: int
    n_sentences: int

    @property
    def outputs(self) -> dict[str, int]:
        """The number of columns of each matrix, by name."""
        a = self.architecture
        result: dict[str, int] = {}
        for number in range(a.n_layers):
            name = f"layer_{number}"
            result |= {
                f"{name}.qkv": 3 * a.hidden,
                f"{name}.out": a.hidden,
                f"{name}.residual_1": a.hidden,
                f"{name}.up": a.intermediate,
                f"{name}.down": a.hidden,
                f"{name}.residual_2": a.hidden,
            }
        if a.head_activation is None:
            return result | {"pool": a.hidden}
        return result | {"head_dense": a.hidden, "head_out": a.n_labels}


@final
@dataclass(frozen=True, slots=True, eq=False)
class IntegerMatrix:
    """A linear map, whole. Dense: weight [n_in, n_out]. Diagonal: weight [2, n], gain and column.

    bias: [n_out], or None for a residual, whose bias is in the term beside it.
    """

    weight: npt.NDArray[np.int32]
    bias: Integers | None
    is_dense: bool

    def __repr__(self) -> str:
        return f"IntegerMatrix(shape={self.weight.shape})"

    def in_ring(self, bits: int, n_threads: int = 1) -> Matrix:
        """For the dealer."""
        dtype = dtype_of(bits)
        bias = None if self.bias is None else self.bias.astype(dtype)
        return matrix_of(self.weight.astype(dtype), bias, self.is_dense, n_threads)

    def exact(self) -> Matrix:
        """For the twin."""
        if self.is_dense:
            return Exact(self.weight.astype(np.float64), self.bias)
        gain, column = self.weight.astype(np.int64)
        return ExactResidual(gain, column, self.bias)


@final
@dataclass(frozen=True, slots=True, eq=False)
class PrivateModel:
    """What the model's owner has. word: the embedding table [n_vocab, hidden], or None where it
    is public and the client's.
    """

    matrices: Mapping[str, IntegerMatrix]
    constants: Mapping[str, Integers]
    word: npt.NDArray[np.int32] | None

    def __repr__(self) -> str:
        return f"PrivateModel({len(self.matrices)} matrices)"


@final
@dataclass(frozen=True, slots=True, eq=False)
class ClientEmbedding:
    """A public embedding, as the client holds it: float32 word [V, d], position [P, d], and the
    norm's eps. Gain and bias stay in the private matrices.
    """

    word: npt.NDArray[np.float32]
    position: npt.NDArray[np.float32]
    eps: float


@final
@dataclass(frozen=True, slots=True, eq=False)
class QuantisedModel:
    """All of it. client: the public embedding, where there is one."""

    public: PublicModel
    private: PrivateModel
    client: ClientEmbedding | None


def matrix_of(weight: Array, bias: Array | None, is_dense: bool, n_threads: int = 1) -> Matrix:
    """A map in the ring of `weight`'s dtype; for the dealer whole, for a party its share."""
    if is_dense:
        return Dense(ring.pack(weight), bias, n_threads)
    return Residual(weight[0], weight[1], bias)
