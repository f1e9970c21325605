"""Balanced rows and columns: secret scales go, and a permutation is left.

1. Divide rows, then columns, of both embeddings by their lengths, 40 times. Two tables that
   differ by row scales, column scales and permutations become one table, but for the latter.
2. Magnitudes of each row, sorted: columns' order and signs go.
3. The nearest row of the base, by Euclidean distance, is the token.

Fails once a key mixes columns.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from veilrun.attacks.attack import Attack
from veilrun.attacks.holdings import Holdings, Substitution
from veilrun.attacks.levels import Level
from veilrun.attacks.matching import nearest, sorted_magnitudes
from veilrun.attacks.weights import Table

N_ROUNDS: Final = 40


def run(have: Holdings) -> Substitution:
    """Match rows of the balanced tables by their sorted magnitudes."""
    sealed, base = (sorted_magnitudes(_balanced(one.embedding)) for one in have.tables)
    candidates, _ = nearest(sealed, base, k=10)
    return Substitution(candidates, notes={"rounds": N_ROUNDS})


def _balanced(table: Table) -> Table:
    """Columns of length one, rows of one common length; rows and columns of zeros stay zeros.

    Only squares of entries matter for lengths, so the rounds multiply vectors alone.
    """
    squares = np.square(table)
    rows, columns = np.ones(len(table)), np.ones(table.shape[1])
    for _ in range(N_ROUNDS):
        rows = _inverse(squares @ columns)
        columns = _inverse(rows @ squares)
    balanced: Table = table * np.sqrt(rows)[:, None] * np.sqrt(columns)
    return balanced


def _inverse(sums: Table) -> Table:
    result: Table = np.where(sums == 0.0, 0.0, 1.0 / np.where(sums == 0.0, 1.0, sums))
    return result


ATTACK: Final = Attack(
    name="sinkhorn-matching",
    title="sorted rows of balanced tables",
    levels=(Level.BASE, Level.FINE_TUNE),
    material=("tables",),
    knows="both embeddings",
    recovers="the vocabulary's permutation",
    breaks="scaled",
    stops="a key that mixes columns",
    source="Sinkhorn balancing against permutations with scales; magnitudes instead of values: own",
    cost="40 V d to balance, V^2 to compare",
    run=run,
)
