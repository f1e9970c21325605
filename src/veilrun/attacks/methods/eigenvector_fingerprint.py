"""Eigenvectors that both sides share: any invertible key leaves them, as long as tables are exact.

With the embedding W and a second table H that reads the stream, C = (H^T H)(W^T W) is a map of
the stream; sealed, it is Q C P, whatever rows moved.

1. Choose H: the head; the MLP readers of all layers together, whose rows move inside each layer
   only; and those of the first layer.
2. `eigenvectors`: match rows by |W x| of the first k eigenvectors x: all for exact keys, then
   fewer, as noise turns the later ones first.
3. Let ridge maps teach themselves from the rows that stand out.
4. Keep the result whose guesses name most different tokens; stop early if nearly all do.

Fails under enough noise, which shifts C: how much depends on the model, and a head helps, as its
rows carry less. See `inner_maps` for a C without the noisy tables.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np

from veilrun.attacks.attack import Attack
from veilrun.attacks.eigenvectors import fingerprint
from veilrun.attacks.holdings import Holdings, Substitution
from veilrun.attacks.levels import Level
from veilrun.attacks.ridge import ENOUGH, Learnt, candidates, views_of
from veilrun.attacks.weights import LayerTables, Table, Weights

_FEW: Final = (8, 16, 24, 32, 48)


def run(have: Holdings) -> Substitution:
    """Match rows by shared eigenvectors."""
    sealed, base = have.tables
    second, learnt = learn(sealed, base)
    notes = {"second table": float(second), "distinct guesses": learnt.distinct}
    return Substitution(candidates(views_of(sealed, base), learnt), notes)


def learn(sealed: Weights, base: Weights) -> tuple[int, Learnt]:
    """Which H did best, by its number, and what it taught."""
    views = views_of(sealed, base)
    best: tuple[int, Learnt] | None = None
    for ks in ((base.hidden,), _FEW):
        for number, maps in enumerate(zip(_maps(sealed), _maps(base), strict=False)):
            learnt = fingerprint(maps, views, ks)
            if best is None or learnt.distinct > best[1].distinct:
                best = number, learnt
            if best[1].distinct > ENOUGH:
                return best
    if best is None:
        raise LookupError("no second table that reads the stream")
    return best


def _maps(weights: Weights) -> Iterator[Table]:
    """C for each choice of H, in one order for both models."""
    rows = _gram(weights.embedding)
    if weights.head is not None:
        yield _gram(weights.head) @ rows
    layers = [_gram(one) for one in map(_units, weights.layers) if one is not None]
    if layers:
        total: Table = np.sum(layers, axis=0)
        yield total @ rows
        yield layers[0] @ rows


def _units(layer: LayerTables) -> Table | None:
    return layer.readers.get("units")


def _gram(table: Table) -> Table:
    result: Table = table.T @ table
    return result


ATTACK: Final = Attack(
    name="eigenvector-fingerprint",
    title="shared eigenvectors of two tables",
    levels=(Level.BASE, Level.FINE_TUNE),
    material=("tables",),
    knows="embedding, and head or layers, of both models",
    recovers="the vocabulary's permutation",
    breaks="invertible",
    stops="noise on the tables, unless the layers give the key away (inner-maps)",
    source="own; generalised eigenvectors",
    cost="d^3, then V^2 d to compare",
    run=run,
)
