"""Covariant obfuscation: a longer residual stream under a key that is not orthogonal, and noise.

Source: AloePri, arXiv 2603.01499. Rows are vectors here. With secret B [n, n] near an orthogonal
matrix, and C, E [n, h], F, D [h, n] such that C F = 0 and E D = 0,

    P = [B C E] Z  [n, n + 2 h]      Q = Z^T [B^-1; F; D]  [n + 2 h, n]      P Q = 1

for a secret orthogonal Z. What writes to the stream takes P, what reads it takes Q, so every
linear step is exact. An RMSNorm is not: |x P| / |x| varies with x. The paper answers with one
constant gain kappa for all norms; here P is scaled instead, so that the mean of |x P|^2 / |x|^2
over all directions is (n + 2 h) / n and that gain is 1. (Means over the embedding's rows, or over
real text norm by norm, were tried and agreed no better.) The two ends are changed for good: each
entry of embedding and head gets Gaussian noise of a share of its table's standard deviation.

Covered: nothing beyond what the red team measures. Not covered: frequency analysis of ids, and the
tables between the ends, which carry no noise.

Invariant: the same key and numbers give the same P, Q and noise. Other numbers change the label
of every secret: two copies under one key must not share their noise, or its difference betrays it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch
from torch import Tensor

from veilrun.equivariant.families.table import Family, Shape
from veilrun.equivariant.groups import Array
from veilrun.equivariant.maps import Expand
from veilrun.errors import UnsupportedModel, UsageError
from veilrun.keys import SecretStream

HEAD_SHARE: Final = 0.2
"""The head's noise for each unit of the embedding's: the paper's 0.2 beside 1.0."""

SPREAD: Final = 0.3
"""How far B is from orthogonal: the paper's lambda."""

MAX_EXPANSION: Final = 128
"""The paper's h."""


@dataclass(frozen=True, slots=True)
class Noise:
    """The strength of one covariant copy.

    embedding, head: noise in standard deviations of each table (alpha_e, alpha_h).
    expansion: h, dimensions added on either side; None takes `fitted`'s default.
    """

    embedding: float
    head: float
    expansion: int | None = None

    def __post_init__(self) -> None:
        if not (0 <= self.embedding < math.inf and 0 <= self.head < math.inf):
            raise UsageError("noise is a number from 0 upwards, in standard deviations")
        if self.expansion is not None and self.expansion < 1:
            raise UsageError("the expansion adds at least one dimension on either side")

    @classmethod
    def of(cls, amount: float, expansion: int | None = None) -> Noise:
        """`amount` on the embedding, and the paper's share of it on the head."""
        return cls(amount, HEAD_SHARE * amount, expansion)

    def fitted(self, family: Family, shape: Shape) -> Noise:
        """With the expansion that this model gets: by default at most `MAX_EXPANSION` and at most
        a quarter of the stream; always rounded up until the heads divide the longer stream as
        they did the plain one, which engines ask for.

        Raises:
            UnsupportedModel: the family has a norm that no stretched stream passes through.
        """
        if not family.reads_rows:
            raise UnsupportedModel(
                f"family {family.name} has no noisy form: only an RMSNorm that linear modules "
                "read passes a longer stream on"
            )
        wanted = self.expansion or max(1, min(MAX_EXPANSION, shape.hidden // 4))
        step = shape.n_heads // math.gcd(shape.n_heads, 2)
        return replace(self, expansion=math.ceil(wanted / step) * step)

    @property
    def label(self) -> str:
        """The word that tells the secrets of this copy from those of every other."""
        return f"covariant {self.embedding!r} {self.head!r} {self.expansion}"


def covariant_key(stream: SecretStream, n: int, expansion: int) -> Expand:
    """P and Q of the docstring above, for a stream of n entries."""
    h, rank = expansion, max(expansion // 2, 1)
    square = stream.haar(1, n)[0] + SPREAD * stream.normal(n, n) / np.sqrt(n)
    outer = stream.normal(n, rank) @ stream.normal(rank, h) / np.sqrt(n * rank)
    inner = stream.normal(h, rank) @ stream.normal(rank, n) / np.sqrt(n * rank)
    free, idle = _kernel(inner.T), _kernel(outer)
    beside = stream.normal(n, free.shape[1]) @ free.T / np.sqrt(n)  # C: C F = 0
    under = idle @ stream.normal(idle.shape[1], n) / np.sqrt(n)  # D: E D = 0
    turn = stream.haar(1, n + 2 * h)[0]
    write = np.concatenate([square, beside, outer], axis=1) @ turn
    read = turn.T @ np.concatenate([np.linalg.inv(square), inner, under])
    scale = np.sqrt(n + 2 * h) / np.linalg.norm(write)
    return Expand(
        torch.from_numpy(np.ascontiguousarray(scale * write.T)), torch.from_numpy(read / scale)
    )


def blurring(stream: SecretStream, deviation: float) -> Callable[[Tensor], Tensor]:
    """Adds noise to the transposed rows [n, m] of a table, which must come in order.

    Drawn row by row, so that the size of the pieces changes nothing.
    """

    def blur(x: Tensor) -> Tensor:
        drawn = np.stack([stream.normal(x.shape[0]) for _ in range(x.shape[1])], axis=1)
        return x + deviation * torch.from_numpy(drawn).to(x.dtype)

    return blur


def _kernel(rows: Array) -> Array:
    """[columns, rest]: an orthonormal basis of the vectors x with rows @ x = 0."""
    _, values, right = np.linalg.svd(rows)
    rank = int((values > values[0] * 1e-9).sum())
    basis: Array = right[rank:].T
    return basis
