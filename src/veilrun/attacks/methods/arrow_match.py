"""Directions of rows: a fine-tune hardly turns them, and scales do not turn them at all.

1. Match each row of the sealed embedding with the base's row of largest |cosine|.
2. Do the same with the neurons of each MLP.
3. A private row is then its partner times the ratio of lengths: the median |cosine| says how
   much of the private weights this gives away without any query.

Fails once a key permutes or mixes columns.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from veilrun.attacks.attack import Attack
from veilrun.attacks.holdings import Holdings, Substitution
from veilrun.attacks.levels import Level
from veilrun.attacks.matching import nearest_by_direction
from veilrun.attacks.weights import Table, Weights


def run(have: Holdings) -> Substitution:
    """Match rows by direction."""
    sealed, base = have.tables
    # Columns that an expanded key adds have no counterpart.
    n = min(sealed.hidden, base.hidden)
    candidates, cosines = nearest_by_direction(sealed.embedding[:, :n], base.embedding[:, :n], k=10)
    best, units = cosines[:, 0], _unit_cosines(sealed, base, n)
    notes = {"cosine": _median(best), "rows above 0.99": _share(best)}
    if len(units):
        notes |= {"cosine of units": _median(units), "units above 0.99": _share(units)}
    return Substitution(candidates, notes=notes)


def _unit_cosines(sealed: Weights, base: Weights, n: int) -> Table:
    """Best |cosine| of every MLP neuron of every layer, by the first n columns."""
    found = [np.empty(0)]
    for ours, theirs in zip(sealed.layers, base.layers, strict=True):
        if "units" in ours.readers:
            rows, among = ours.readers["units"], theirs.readers["units"]
            found.append(nearest_by_direction(rows[:, :n], among[:, :n])[1][:, 0])
    return np.concatenate(found)


def _median(cosines: Table) -> float:
    return float(np.median(cosines))


def _share(cosines: Table) -> float:
    return float((cosines > 0.99).mean())


ATTACK: Final = Attack(
    name="arrow-match",
    title="directions of rows",
    levels=(Level.FINE_TUNE, Level.BASE),
    material=("tables",),
    knows="both embeddings, and the neurons of both models",
    recovers="the vocabulary's permutation, and the private weights up to the fine-tune's turn",
    breaks="vocabulary",
    stops="a key that permutes or mixes columns",
    source="ArrowMatch (USENIX Security 2025)",
    cost="V^2 d to compare",
    run=run,
)
