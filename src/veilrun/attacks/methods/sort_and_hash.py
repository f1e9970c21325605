"""Sorted rows: a permutation of columns, with or without signs, keeps each row's magnitudes.

1. Sort the magnitudes of each row of both embeddings, and keep 64 of them, evenly spaced: that
   is plenty to tell rows apart, and it still compares where an expanded key has added columns.
2. The nearest row of the base, by Euclidean distance, is the token.

Fails once a key mixes columns. Norm gains need no care here: embeddings have none.
"""

from __future__ import annotations

from typing import Final

from veilrun.attacks.attack import Attack
from veilrun.attacks.holdings import Holdings, Substitution
from veilrun.attacks.levels import Level
from veilrun.attacks.matching import nearest, sorted_magnitudes


def run(have: Holdings) -> Substitution:
    """Match rows by their sorted magnitudes."""
    sealed, base = have.tables
    ours, theirs = sorted_magnitudes(sealed.embedding), sorted_magnitudes(base.embedding)
    candidates, _ = nearest(ours, theirs, k=10)
    return Substitution(candidates)


ATTACK: Final = Attack(
    name="sort-and-hash",
    title="sorted rows",
    levels=(Level.BASE, Level.FINE_TUNE),
    material=("tables",),
    knows="both embeddings",
    recovers="the vocabulary's permutation",
    breaks="permutation",
    stops="a key that mixes columns",
    source="folklore; row sorting against feature permutations",
    cost="V d log d to sort, V^2 d to compare",
    run=run,
)
