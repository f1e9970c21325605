"""Rows of one table that look like rows of another: what most attacks end in.

All functions work in blocks, so memory grows with the tables and not with their product.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from veilrun.attacks.weights import Ids, Table

_BLOCK = 2048


def nearest(rows: Table, among: Table, k: int = 1) -> tuple[Ids, Table]:
    """The k rows of `among` [m, f] nearest to each of `rows` [n, f], by Euclidean distance.

    Returns: ids [n, k], nearest first, and their distances [n, k].
    """
    norms = np.square(among).sum(1)
    found, scores = _best(rows, k, len(among), lambda block: 2.0 * block @ among.T - norms)
    squares = np.square(rows).sum(1)[:, None] - scores
    return found, np.sqrt(np.maximum(squares, 0.0))


def nearest_by_cosine(rows: Table, among: Table, k: int = 1) -> tuple[Ids, Table]:
    """The k rows of `among` with the largest cosine, and their cosines [n, k]."""
    directions = unit(among)
    return _best(unit(rows), k, len(among), lambda block: block @ directions.T)


def unit(rows: Table) -> Table:
    """Rows of length one; rows of zeros stay zeros."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    result: Table = rows / np.where(lengths == 0.0, 1.0, lengths)
    return result


def standardised(features: Table) -> Table:
    """Columns of mean 0 and standard deviation 1; constant columns become zeros."""
    spread = features.std(0)
    result: Table = (features - features.mean(0)) / np.where(spread == 0.0, 1.0, spread)
    return result


def _best(rows: Table, k: int, m: int, score: Callable[[Table], Table]) -> tuple[Ids, Table]:
    k = min(k, m)
    found = np.empty((len(rows), k), np.int64)
    scores = np.empty((len(rows), k))
    for start in range(0, len(rows), _BLOCK):
        block = score(rows[start : start + _BLOCK])
        part = (
            np.argpartition(-block, k - 1, axis=1)[:, :k]
            if k < m
            else np.tile(np.arange(m), (len(block), 1))
        )
        values = np.take_along_axis(block, part, 1)
        order = np.argsort(-values, axis=1, kind="stable")
        found[start : start + _BLOCK] = np.take_along_axis(part, order, 1)
        scores[start : start + _BLOCK] = np.take_along_axis(values, order, 1)
    return found, scores
