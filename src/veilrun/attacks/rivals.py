"""Published transforms, written from their formulas: what the attacks are proved on.

Rows are vectors here: an embedding row w becomes w P, a reader's row r becomes r Q^T with
P Q = I, so w r^T stays what it was. Rows of vocabulary tables move by a secret permutation; MLP
units move by another in each layer; queries, keys and values turn inside their heads.

| name        | stream                             | as in                                       |
| ----------- | ---------------------------------- | ------------------------------------------- |
| vocabulary  | untouched                          | Nesa's EE, as its demonstration publishes it |
| scaled      | permutation with positive scales   | TransLinkGuard and its kin                  |
| permutation | signed permutation                 | kLLM `perm`                                 |
| orthogonal  | uniform orthogonal                 | kLLM `orth`                                 |
| invertible  | any invertible matrix              | dense keys without noise                    |
| covariant   | expanded, not orthogonal; and noise | AloePri (arXiv 2603.01499)                  |

Invariant: secrets are drawn from a `SecretStream`; the same stream gives the same copy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from veilrun.attacks.weights import Ids, LayerTables, Table, Weights
from veilrun.keys import SecretStream


@dataclass(frozen=True, eq=False)
class Sealed:
    """A sealed copy, and the truth about it. order[c] is the plain id whose cipher id is c."""

    weights: Weights
    order: Ids


@dataclass(frozen=True, eq=False)
class StreamKey:
    """write: P [hidden, sealed hidden]; read: Q [sealed hidden, hidden], with P Q = I."""

    write: Table
    read: Table


@dataclass(frozen=True, slots=True)
class Noise:
    """Gaussian noise on the ends, in standard deviations of each table.

    expansion: how many dimensions the key adds on either side (2 h more in all).
    spread: lambda, how far the square part is from orthogonal.
    """

    embedding: float = 1.0
    head: float = 0.2
    expansion: int = 128
    spread: float = 0.3


DrawKey = Callable[[SecretStream, int], StreamKey]


def untouched(stream: SecretStream, n: int) -> StreamKey:
    """The stream as it is."""
    return StreamKey(np.eye(n), np.eye(n))


def scaled(stream: SecretStream, n: int) -> StreamKey:
    """A permutation with scales between 1/4 and 4."""
    scales = 4.0 ** (2.0 * _uniform(stream, n) - 1.0)
    moved = np.eye(n)[stream.permutation(n)]
    return StreamKey((moved * scales).copy(), (moved / scales).T.copy())


def signed_permutation(stream: SecretStream, n: int) -> StreamKey:
    """A permutation with signs."""
    key = np.eye(n)[stream.permutation(n)] * stream.signs(n)
    return StreamKey(key, key.T)


def orthogonal(stream: SecretStream, n: int) -> StreamKey:
    """A uniform orthogonal matrix."""
    key = stream.haar(1, n)[0]
    return StreamKey(key, key.T)


def invertible(stream: SecretStream, n: int) -> StreamKey:
    """Two rotations with singular values between 1 and 10 in between."""
    left, right = stream.haar(2, n)
    values = 10.0 ** _uniform(stream, n)
    return StreamKey(left * values @ right, (right.T / values) @ left.T)


def covariant(noise: Noise) -> DrawKey:
    """AloePri's expanded key: P = [B C E] Z, Q = Z^T [B^-1; F; D]."""

    def draw(stream: SecretStream, n: int) -> StreamKey:
        h = noise.expansion
        square = stream.haar(1, n)[0] + noise.spread * stream.normal(n, n) / np.sqrt(n)
        rank = max(h // 2, 1)
        outer = stream.normal(n, rank) @ stream.normal(rank, h) / np.sqrt(n * rank)
        inner = stream.normal(h, rank) @ stream.normal(rank, n) / np.sqrt(n * rank)
        free, idle = _kernel(inner.T), _kernel(outer)
        beside = stream.normal(n, free.shape[1]) @ free.T / np.sqrt(n)  # C F = 0
        under = idle @ stream.normal(idle.shape[1], n) / np.sqrt(n)  # E D = 0
        turn = stream.haar(1, n + 2 * h)[0]
        write = np.concatenate([square, beside, outer], axis=1) @ turn
        read = turn.T @ np.concatenate([np.linalg.inv(square), inner, under])
        return StreamKey(write, read)

    return draw


RIVALS: Final[dict[str, DrawKey]] = {
    "vocabulary": untouched,
    "scaled": scaled,
    "permutation": signed_permutation,
    "orthogonal": orthogonal,
    "invertible": invertible,
}
"""Those without noise, by name."""


def seal(
    weights: Weights, stream: SecretStream, draw_key: DrawKey, noise: Noise | None = None
) -> Sealed:
    """A sealed copy of all tables; noise goes on the two ends, as AloePri has it."""
    key = draw_key(stream, weights.hidden)
    order = stream.permutation(weights.vocab_size)
    on_embedding, on_head = (noise.embedding, noise.head) if noise else (0.0, 0.0)
    embedding = _blurred(weights.embedding, on_embedding, stream)[order] @ key.write
    head = weights.head
    if head is not None:
        head = _blurred(head, on_head, stream)[order] @ key.read.T
    layers = tuple(_seal_layer(one, stream, key, weights) for one in weights.layers)
    shape = replace(weights.shape, hidden=key.write.shape[1])
    return Sealed(Weights(embedding, head, layers, shape), order)


def covariant_copy(weights: Weights, stream: SecretStream, noise: Noise) -> Sealed:
    """A copy as AloePri makes it."""
    return seal(weights, stream, covariant(noise), noise)


def _seal_layer(
    layer: LayerTables, stream: SecretStream, key: StreamKey, weights: Weights
) -> LayerTables:
    units = stream.permutation(len(layer.readers["units"])) if "units" in layer.readers else None
    readers = {}
    for axis, rows in layer.readers.items():
        if axis in ("units", "products") and units is not None:
            moved = rows[units]
        else:
            moved = _turned_heads(stream, rows, weights.shape.head_dim)
        readers[axis] = moved @ key.read.T
    writers = {}
    for axis, rows in layer.writers.items():
        own = units is not None and axis in ("units", "products")
        moved = rows[units] if own else _turned_heads(stream, rows, weights.shape.head_dim)
        writers[axis] = moved @ key.write
    return LayerTables(readers, writers)


def _turned_heads(stream: SecretStream, rows: Table, head_dim: int) -> Table:
    """Each head's rows under a rotation of its own, and the heads in another order."""
    n_heads = len(rows) // head_dim
    heads = rows.reshape(n_heads, head_dim, -1)[stream.permutation(n_heads)]
    turned: Table = (stream.haar(n_heads, head_dim) @ heads).reshape(rows.shape)
    return turned


def _blurred(rows: Table, amount: float, stream: SecretStream) -> Table:
    if amount == 0.0:
        return rows
    blurred: Table = rows + amount * rows.std() * stream.normal(*rows.shape)
    return blurred


def _uniform(stream: SecretStream, n: int) -> Table:
    return stream.uint64(n).astype(np.float64) * 2.0**-64


def _kernel(rows: Table) -> Table:
    """[columns, rest]: an orthonormal basis of the vectors x with rows @ x = 0."""
    _, values, right = np.linalg.svd(rows)
    rank = int((values > values[0] * 1e-9).sum())
    basis: Table = right[rank:].T
    return basis
