"""Eigenvectors as a basis that both sides share: a map of the stream, and its sealed twin.

Under a key with P Q = I a map C of the stream to itself becomes Q C P. It keeps its eigenvalues
(an expanded key adds zeros), and an eigenvector x becomes Q x. So a vocabulary row w, which
becomes w P, has |w P Q x| = |w x|: the same number on both sides, whatever the key. A head's
row has the same with eigenvectors from the left.

1. Eigenvectors of both maps, in falling order of their eigenvalues' magnitude (which conjugate
   pairs share, as they share |w x|).
2. Features: |W x| of the first k, in standard deviations of each column.
3. Nearest rows, and how much nearer the first is than the second.
4. `ridge.self_train` from the matches that stand out.

Fails if noise on the maps changes the order of eigenvalues or turns eigenvectors, and if noise
on the rows drowns all features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from veilrun.attacks.holdings import Pairs
from veilrun.attacks.matching import nearest, standardised
from veilrun.attacks.ridge import ENOUGH, Learnt, View, confident, sample_rows, self_train
from veilrun.attacks.weights import Table

_SEED_SHARE: Final = 0.05


def eigenvectors(of: Table, k: int) -> Table:
    """[n, k], complex: of the k eigenvalues with the largest magnitudes, largest first."""
    values, vectors = np.linalg.eig(of)
    order = np.argsort(-np.abs(values), kind="stable")[:k]
    found: Table = vectors[:, order]
    return found


def fingerprint(maps: tuple[Table, Table], views: Sequence[View], ks: Sequence[int]) -> Learnt:
    """What is learnt by a sealed map and its base twin. ks: numbers of eigenvectors to try."""
    rank = min(len(one) for one in maps)
    sides = [(one, one.T)[: len(views)] for one in maps]
    bases = [[eigenvectors(one, rank) for one in side] for side in sides]
    best: Learnt | None = None
    for k in sorted({min(k, rank) for k in ks}):
        sealed, base = ([vectors[:, :k] for vectors in side] for side in bases)
        learnt = self_train(views, _seeds(views, sealed, base))
        if best is None or learnt.distinct > best.distinct:
            best = learnt
        if best.distinct > ENOUGH:
            break
    if best is None:
        raise LookupError("no number of eigenvectors to try")
    return best


def _seeds(views: Sequence[View], sealed: Sequence[Table], base: Sequence[Table]) -> Pairs:
    """First matches: rows alike in their features of all views."""
    sample = sample_rows(views[0].sealed)
    ours = [_features(one.sealed, vectors) for one, vectors in zip(views, sealed, strict=True)]
    theirs = [_features(one.base, vectors) for one, vectors in zip(views, base, strict=True)]
    among = np.concatenate(theirs, axis=1)
    found, distances = nearest(np.concatenate(ours, axis=1)[sample], among, 2)
    margins = 1.0 - distances[:, 0] / np.maximum(distances[:, 1], 1e-300)
    n = max(int(_SEED_SHARE * len(sample)), min(400, len(sample) // 5))
    return confident(sample, found[:, 0], margins, n)


def _features(rows: Table, vectors: Table) -> Table:
    return standardised(np.abs(rows @ vectors))
