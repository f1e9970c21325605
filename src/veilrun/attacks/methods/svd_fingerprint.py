"""Singular vectors of the embedding: a rotation of the stream does not touch the left ones.

1. With W' = Pi W Q and Q orthogonal, the eigenvectors of W'^T W' are those of W^T W turned by
   Q. So each row's coordinates along them, over the singular values, are the same up to signs.
2. The nearest row by the magnitudes of the first 64, 32, 16 or 8 of these is a first match.
3. Least squares from the better half of the matched rows to their partners, the nearest row
   under it, and again, on a sample of rows and for as long as the doubt falls: the lower
   quartile of (nearest distance / second distance), which needs no truth. A quartile, because
   half of a vocabulary may be untrained tokens that no noise leaves apart.
4. The last fit, on all rows.

Columns that an expanded key adds have eigenvalue zero and drop out. Fails where the key is not
orthogonal, where the spectrum has ties, or where noise is as large as what tells rows apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from veilrun.attacks.attack import Attack
from veilrun.attacks.holdings import Holdings, Substitution
from veilrun.attacks.levels import Level
from veilrun.attacks.matching import nearest
from veilrun.attacks.weights import Ids, Table

WIDTHS: Final = (64, 32, 16, 8)
N_ROUNDS: Final = 6
SURE: Final = 0.5
"""Doubt below this needs no other width: rows that match nothing stay near one."""


@dataclass(frozen=True, eq=False)
class _Axes:
    """rows: [n, columns], coordinates along the eigenvectors, the largest first.
    left: the same over singular values.
    """

    rows: Table
    left: Table


@dataclass(frozen=True, eq=False)
class _Match:
    """partners: of the sampled rows. ratios: nearest over second distance; 1 where two rows
    have one partner, for then at least one is wrong.
    fit: [columns, columns], what it came from (in step 2: nothing, so it is empty).
    """

    partners: Ids
    ratios: Table
    fit: Table

    @property
    def doubt(self) -> float:
        return float(np.quantile(self.ratios, 0.25))


def run(have: Holdings) -> Substitution:
    """Match rows by left singular vectors, then refine."""
    tables = [one.embedding for one in have.tables]
    n_columns = min(table.shape[1] for table in tables)
    sealed, base = (_along_axes(table, n_columns) for table in tables)
    order = np.random.default_rng(0).permutation(len(sealed.rows))
    sample = order[: max(2048, 8 * n_columns)]
    tried: list[tuple[_Match, int, int]] = []
    for width in WIDTHS:
        match, n_rounds = _refined(sealed, base, sample, width)
        tried.append((match, width, n_rounds))
        if match.doubt < SURE:
            break
    match, width, n_rounds = min(tried, key=lambda one: one[0].doubt)
    candidates, _ = nearest(sealed.rows @ match.fit, base.rows, k=10)
    return Substitution(
        candidates, notes={"width": width, "rounds": n_rounds, "doubt": match.doubt}
    )


def _along_axes(table: Table, n_columns: int) -> _Axes:
    values, vectors = np.linalg.eigh(table.T @ table)
    largest = np.argsort(-values)[:n_columns]
    rows: Table = table @ vectors[:, largest]
    scales = np.sqrt(np.maximum(values[largest], values.max() * 1e-24))
    return _Axes(rows, rows / scales)


def _refined(sealed: _Axes, base: _Axes, sample: Ids, width: int) -> tuple[_Match, int]:
    """Steps 2 and 3 with the first `width` columns; also the rounds that helped."""
    partners, distances = nearest(
        np.abs(sealed.left[sample, :width]), np.abs(base.left[:, :width]), k=2
    )
    match = _fitted(sealed, base, sample, _match(partners, distances, np.empty((0, 0))))
    for n_rounds in range(1, N_ROUNDS):
        better = _fitted(sealed, base, sample, match)
        if better.doubt >= match.doubt:
            return match, n_rounds
        match = better
    return match, N_ROUNDS


def _fitted(sealed: _Axes, base: _Axes, sample: Ids, match: _Match) -> _Match:
    """One round: fit on the better half, match again."""
    sure = np.argsort(match.ratios, kind="stable")[: max(len(sample) // 2, 1)]
    rows, wanted = sealed.rows[sample[sure]], base.rows[match.partners[sure]]
    fit: Table = np.asarray(np.linalg.lstsq(rows, wanted)[0], np.float64)
    partners, distances = nearest(sealed.rows[sample] @ fit, base.rows, k=2)
    return _match(partners, distances, fit)


def _match(partners: Ids, distances: Table, fit: Table) -> _Match:
    nearest_row, second = partners[:, 0], distances[:, -1]
    sole = np.bincount(nearest_row)[nearest_row] == 1
    ratios = np.where(sole & (second > 0.0), distances[:, 0] / np.maximum(second, 1e-300), 1.0)
    return _Match(nearest_row, ratios, fit)


ATTACK: Final = Attack(
    name="svd-fingerprint",
    title="left singular vectors",
    levels=(Level.BASE, Level.FINE_TUNE),
    material=("tables",),
    knows="both embeddings",
    recovers="the vocabulary's permutation, and the rotation of the stream",
    breaks="orthogonal",
    stops="a key that is not orthogonal, or noise of the size of the embedding itself",
    source="folklore; least-squares refinement and the choice of width: own",
    cost="V d^2 for the axes, V^2 d to compare",
    run=run,
)
