"""Whether an encrypted model descends from a base, without reading a token.

1. `inner_key` pairs eigenvectors of the layers' maps R^T W, which no key changes, and finds the
   one key that fits all layers. What does not fit, from 0 to 1, is the misfit.
2. If that fails (training has turned eigenvectors), fit the key on rows instead: match the
   vocabulary, first with the rough key, then by shared eigenvectors, and map base rows to sealed
   ones by ridge.
3. Similarity: the mean cosine, over layers, of the base's map and the sealed one brought back
   by the key; traces are taken out, as every model's layers share those.

Above `THRESHOLD` the model is kin. Fails where layers carry noise or were trained anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np

from veilrun.attacks.attack import Attack
from veilrun.attacks.holdings import Holdings, Kinship, Pairs
from veilrun.attacks.inner_key import InnerKey, find_inner_key, inner_map
from veilrun.attacks.levels import Level
from veilrun.attacks.methods.eigenvector_fingerprint import learn
from veilrun.attacks.methods.inner_maps import read_with
from veilrun.attacks.ridge import ridge_map, self_train, views_of
from veilrun.attacks.weights import Table, Weights

_CLEAR: Final = 0.9
THRESHOLD: Final = 0.15
"""Measured on small models: what is not kin (two real models; random tables in the place of one)
reaches 0.07; exact copies 1.00; a fine-tune of 200 steps 0.99, under default noise 0.30 to 0.49."""


def run(have: Holdings) -> Kinship:
    """Compare the layers under the best key."""
    sealed, base = have.tables
    key = find_inner_key(sealed, base)
    by_layers, by_rows = _likeness(sealed, base, key.write), 0.0
    if by_layers <= _CLEAR:
        for pairs in _matches(key, sealed, base):
            by_rows = max(by_rows, _likeness(sealed, base, _fit(pairs, sealed, base)))
            if by_rows > _CLEAR:
                break
    notes = {"by layers": by_layers, "by rows": by_rows, "misfit of layers": key.misfit}
    return Kinship(max(by_layers, by_rows), THRESHOLD, notes)


def _matches(key: InnerKey, sealed: Weights, base: Weights) -> Iterator[Pairs]:
    """Rows that match: first from a key that fits the layers roughly, then without one."""
    yield self_train(views_of(sealed, base), read_with(key, sealed, base)[1].seeds).pairs
    yield learn(sealed, base)[1].pairs


def _fit(pairs: Pairs, sealed: Weights, base: Weights) -> Table:
    """P [hidden, sealed hidden]: from base rows to sealed ones, as noise is on those only."""
    return ridge_map(base.embedding[pairs.plain], sealed.embedding[pairs.cipher], 1e-3)


def _likeness(sealed: Weights, base: Weights, write: Table) -> float:
    """Mean cosine of the base's inner maps and the sealed ones taken back."""
    back = np.linalg.pinv(write)
    cosines = []
    for ours, theirs in zip(sealed.layers, base.layers, strict=False):
        taken = _traceless(write @ inner_map(ours) @ back)
        other = _traceless(inner_map(theirs))
        scale = np.linalg.norm(taken) * np.linalg.norm(other)
        cosines.append(float((taken * other).sum() / max(scale, 1e-300)))
    return max(float(np.mean(cosines)), 0.0)


def _traceless(inner: Table) -> Table:
    result: Table = inner - np.trace(inner) / len(inner) * np.eye(len(inner))
    return result


ATTACK: Final = Attack(
    name="lineage",
    title="which base a model came from",
    levels=(Level.BASE, Level.FINE_TUNE),
    material=("tables",),
    knows="the tables of both models",
    recovers="whether the encrypted model descends from the base",
    breaks="invertible",
    stops="noise on the layers' own weights, or training from another start",
    source="own; invariants after HuRef (arXiv 2312.04828) and AWM (arXiv 2510.06738)",
    cost="d^3 for each layer",
    run=run,
)
