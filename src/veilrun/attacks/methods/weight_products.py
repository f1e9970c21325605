"""Products of two tables, in which the stream's key cancels (AloePri's own vocabulary match).

A row of the embedding times a layer's readers, or of the head times a layer's writers, holds
the same numbers sealed and plain, in another order. Sorting takes the order away.

1. For each product: sort each row, keep 64 quantiles, centre, bring to length one.
2. Cosine of sealed and base rows, in standard deviations of its row.
3. Add up over all products; the largest sum is the token.

What a layer may do to its own axes cancels too. Within a head any matrix does: of a head only the
length counts, whitened over all tokens. Linear branches may be scaled, with signs: of these, the
magnitude in units of its column's root mean square. The same without whitening is added: it
stands noise better, where a key leaves it in place.

Fails under noise on the rows, which blurs the quantiles; more products help.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

import numpy as np

from veilrun.attacks.attack import Attack
from veilrun.attacks.holdings import Holdings, Substitution
from veilrun.attacks.levels import Level
from veilrun.attacks.matching import unit
from veilrun.attacks.weights import Table, Weights

N_QUANTILES: Final = 64
_BLOCK: Final = 512
_K: Final = 10
_HEAD_COLUMNS: Final = 8192
_TINY: Final = 1e-30


def run(have: Holdings) -> Substitution:
    """Add up the likeness of all products' rows."""
    sealed, base = have.tables
    if sealed.head is None or base.head is None:  # a node may have none, though the base does
        sealed, base = replace(sealed, head=None), replace(base, head=None)
    mine, theirs = list(_products(sealed)), list(_products(base))
    found = np.empty((sealed.vocab_size, min(_K, base.vocab_size)), np.int64)
    for start in range(0, sealed.vocab_size, _BLOCK):
        total = np.zeros((len(found[start : start + _BLOCK]), base.vocab_size))
        for ours, other in zip(mine, theirs, strict=True):
            cosines = ours[start : start + _BLOCK] @ other.T
            cosines -= cosines.mean(1, keepdims=True)
            total += cosines / np.maximum(cosines.std(1, keepdims=True), 1e-12)
        found[start : start + _BLOCK] = np.argsort(-total, axis=1, kind="stable")[:, :_K]
    return Substitution(found, {"products": float(len(mine))})


def _products(weights: Weights) -> Iterator[Table]:
    """[vocabulary, quantiles] of each product."""
    head_dim = weights.shape.head_dim
    if weights.head is not None and weights.vocab_size <= _HEAD_COLUMNS:
        yield _profile(weights.embedding, weights.head)
        yield _profile(weights.head, weights.embedding)
    grams = [None if one is None else one.T @ one for one in (weights.embedding, weights.head)]
    for layer in weights.layers:
        for tables, rows, gram in (
            (layer.readers, weights.embedding, grams[0]),
            (layer.writers, weights.head, grams[1]),
        ):
            if rows is None or gram is None:
                continue
            for axis, columns in sorted(tables.items()):
                if axis == "units":
                    yield _profile(rows, columns)
                else:
                    size = 1 if axis == "products" else head_dim
                    yield _profile(rows, columns, size)
                    yield _profile(rows, _whitened(columns, gram, size), size)


def _whitened(columns: Table, gram: Table, size: int) -> Table:
    """Groups of columns mixed so that over all rows their products are uncorrelated."""
    groups = columns.reshape(-1, size, columns.shape[1])
    spreads = groups @ gram @ groups.transpose(0, 2, 1)
    slack = 1e-12 * np.trace(spreads, axis1=1, axis2=2)[:, None, None] + _TINY
    spreads += slack * np.eye(size)
    mixed: Table = np.linalg.solve(np.linalg.cholesky(spreads), groups).reshape(columns.shape)
    return mixed


def _profile(rows: Table, columns: Table, size: int = 0) -> Table:
    """Quantiles of each row of `rows @ columns.T`, by blocks. size: columns of one group, of
    which the length counts; 0: columns count as they are, with signs.
    """
    n_values = len(columns) // max(size, 1)
    places = np.linspace(0, n_values - 1, min(N_QUANTILES, n_values)).round().astype(int)
    result = np.empty((len(rows), len(places)))
    for start in range(0, len(rows), _BLOCK):
        product = rows[start : start + _BLOCK] @ columns.T
        if size:
            product = np.linalg.norm(product.reshape(len(product), n_values, size), axis=2)
        quantiles = np.sort(product, axis=1)[:, places]
        result[start : start + _BLOCK] = unit(quantiles - quantiles.mean(1, keepdims=True))
    return result


ATTACK: Final = Attack(
    name="weight-products",
    title="products of two tables",
    levels=(Level.BASE, Level.FINE_TUNE),
    material=("tables",),
    knows="embedding, head and layers of both models",
    recovers="the vocabulary's permutation",
    breaks="invertible",
    stops="noise on the rows",
    source="vocabulary match on weights, arXiv 2603.01499",
    cost="V n d for a layer of n units to multiply, V^2 for each product to compare",
    run=run,
)
