"""Rows of one table that look like rows of another: what most attacks end in.

All functions work in blocks, so memory grows with the tables and not with their product.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from veilrun.attacks.weights import Ids, Table

_BLOCK: Final = 512
_STRETCH: Final = 64
"""Scores whose largest is found first, when a few of many are wanted."""


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


def nearest_by_direction(rows: Table, among: Table, k: int = 1) -> tuple[Ids, Table]:
    """The k rows of `among` with the largest |cosine|, and these [n, k]."""
    directions = unit(among)
    return _best(unit(rows), k, len(among), lambda block: np.abs(block @ directions.T))


def sorted_magnitudes(table: Table, n: int = 64) -> Table:
    """[rows, n]: n of each row's magnitudes, evenly spaced among the sorted ones.

    They still compare where an expanded key has added columns.
    """
    magnitudes = np.sort(np.abs(table), axis=1)
    places = np.linspace(0, table.shape[1] - 1, n).round().astype(int)
    return magnitudes[:, places]


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
        part = _largest(block, k)
        values = np.take_along_axis(block, part, 1)
        order = np.argsort(-values, axis=1, kind="stable")
        found[start : start + _BLOCK] = np.take_along_axis(part, order, 1)
        scores[start : start + _BLOCK] = np.take_along_axis(values, order, 1)
    return found, scores


def _largest(scores: Table, k: int) -> Ids:
    """[n, k]: where the k largest scores of each row are, in no order.

    They stand in the k stretches with the largest maxima, so only these are searched.
    """
    m = scores.shape[1]
    starts = np.arange(0, m, _STRETCH)
    if len(starts) <= k:
        return _top(scores, k)
    stretches = _top(np.maximum.reduceat(scores, starts, axis=1), k)
    columns = (starts[stretches][:, :, None] + np.arange(_STRETCH)).reshape(len(scores), -1)
    values = np.take_along_axis(scores, np.minimum(columns, m - 1), 1)
    values[columns >= m] = -np.inf
    return np.take_along_axis(columns, _top(values, k), 1)


def _top(scores: Table, k: int) -> Ids:
    if k == 1:
        largest: Ids = scores.argmax(1)[:, None]
        return largest
    return np.argpartition(scores, -k, axis=1)[:, -k:]
