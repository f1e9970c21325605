"""A few numbers per token that a key of the stream does not change.

1. Of each row of the embedding, and of the head where there is one: its length (what RMSNorm
   computes at the first layer; an orthogonal key keeps it) and its leverage, the diagonal of
   W (W^T W)^-1 W^T (any invertible key keeps it).
2. The permutation moves numbers about, so the sorted lists of a scalar agree where the key
   keeps it. A scalar whose lists differ by more than a tenth of its spread is left out; the
   others count by how well their lists agree.
3. The nearest row of the base in these two to four numbers is the token.

Fails where precision is low: tens of thousands of rows share a few digits. Noise ends it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
from scipy.spatial import cKDTree

from veilrun.attacks.attack import Attack
from veilrun.attacks.holdings import Holdings, Substitution
from veilrun.attacks.levels import Level
from veilrun.attacks.weights import Ids, Table, Weights

LIMIT: Final = 0.1
"""Difference of two sorted lists, over the spread, above which a scalar is left out."""
_FLOOR: Final = 1e-12  # float64 has no more to say


def run(have: Holdings) -> Substitution:
    """Match rows by their scalars."""
    sealed, base = map(_scalars, have.tables)
    shared = sealed.keys() & base.keys()
    differences = {name: _difference(sealed[name], base[name]) for name in sorted(shared)}
    kept = {name: one for name, one in differences.items() if one < LIMIT} or differences
    scales = np.array([base[name].std() * max(one, _FLOOR) for name, one in kept.items()])
    rows = np.stack([sealed[name] for name in kept], axis=1) / scales
    among = np.stack([base[name] for name in kept], axis=1) / scales
    # A tree subtracts before it squares; products would lose the digits that count here.
    _, found = cKDTree(among).query(rows, k=min(10, len(among)))
    candidates: Ids = found.astype(np.int64)
    return Substitution(
        candidates,
        notes={f"difference of {name}": one for name, one in differences.items()}
        | {f"uses {name}": float(name in kept) for name in differences},
    )


def _scalars(weights: Weights) -> Mapping[str, Table]:
    """By name, each [vocabulary]: logarithms, for rows differ by factors."""
    tables = {"embedding": weights.embedding}
    if weights.head is not None:
        tables["head"] = weights.head
    found = {}
    for name, table in tables.items():
        found[f"{name} norm"] = _log(np.linalg.norm(table, axis=1))
        found[f"{name} leverage"] = _log(_leverage(table))
    return found


def _leverage(table: Table) -> Table:
    """[rows]: squared lengths in the basis where the columns are uncorrelated.

    Directions that an expanded key adds hold rounding errors alone and are left out.
    """
    values, vectors = np.linalg.eigh(table.T @ table)
    kept = values > values[-1] * 1e-13
    leverage: Table = np.square(table @ (vectors[:, kept] / np.sqrt(values[kept]))).sum(1)
    return leverage


def _log(scalars: Table) -> Table:
    result: Table = np.log(np.maximum(scalars, np.finfo(float).tiny))
    return result


def _difference(sealed: Table, base: Table) -> float:
    """Of the two sorted lists, the median, over the spread of the base's."""
    spread = base.std()
    if spread == 0.0:
        return np.inf
    return float(np.median(np.abs(np.sort(sealed) - np.sort(base))) / spread)


ATTACK: Final = Attack(
    name="norm-scalars",
    title="norms and leverage scores",
    levels=(Level.BASE, Level.FINE_TUNE),
    material=("tables",),
    knows="embedding and head of both models",
    recovers="the vocabulary's permutation",
    breaks="invertible",
    stops="storage in 16 bits, or a little noise",
    source="norms: fastProve's own notes on RMSNorm; leverage scores and their weights: own",
    cost="V d^2 for leverage, V log V to compare",
    run=run,
)
