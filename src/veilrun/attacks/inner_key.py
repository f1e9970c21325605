"""The stream's key from the layers alone, up to one scalar: noise on the vocabulary is no matter.

An MLP's linear branch and its output, multiplied, map the stream to itself: C = R^T W, with R
what reads (up) and W what writes (down). Permutations of units and scales that are undone
cancel in it, so the sealed one is exactly Q C P, for every layer.

1. Eigenvectors X and X' of one layer's C and Q C P; the eigenvalues agree, and pair them by
   assignment. X' = Q X D with D diagonal and unknown.
2. In these bases the other layers' maps are B and B' = D^-1 B D. D is the minimum of the sum of
   |D B' - B D|^2: the smallest eigenvector of a Hermitian matrix.
3. Q = X' D^-1 X^-1. What is left of the sum, as a share, says how well the models agree: 0 for
   one model under any key, near 1 for two that have nothing to do with each other.

Unless the fit is exact, the next layers are tried in the place of the first, and the best is kept.

Fails with a single layer, and where the layers themselves carry noise or were trained on enough
to turn eigenvectors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from scipy.optimize import linear_sum_assignment

from veilrun.attacks.weights import LayerTables, Table, Weights

N_STARTS: Final = 3
_EXACT: Final = 1e-6


@dataclass(frozen=True, eq=False)
class InnerKey:
    """read: Q [sealed hidden, hidden], up to a scalar. misfit: 0 to 1, of the layers' maps."""

    read: Table
    misfit: float

    @property
    def write(self) -> Table:
        """P, up to the inverse scalar: the inverse of Q on what Q reads."""
        inverse: Table = np.linalg.pinv(self.read).astype(np.float64)
        return inverse


def inner_map(layer: LayerTables) -> Table:
    """[hidden, hidden]: what the layer's linear branch reads, on to where it is written."""
    both = sorted(layer.readers.keys() & layer.writers.keys() & {"units", "products"})
    if not both:
        raise LookupError("a layer whose reader and writer do not meet in units")
    total: Table = np.sum([layer.readers[one].T @ layer.writers[one] for one in both], axis=0)
    return total


def find_inner_key(sealed: Weights, base: Weights) -> InnerKey:
    """The key that takes the base's layers to the sealed ones. Raises LookupError if too few."""
    maps = [
        (_scaled(inner_map(one)), _scaled(inner_map(other)))
        for one, other in zip(sealed.layers, base.layers, strict=False)
    ]
    if len(maps) < 2:
        raise LookupError("one layer has no other to be compared with")
    best = _from_layer(maps, 0)
    for at in range(1, min(N_STARTS, len(maps))):
        if best.misfit < _EXACT:
            break
        best = min(best, _from_layer(maps, at), key=lambda one: one.misfit)
    return best


def _from_layer(maps: list[tuple[Table, Table]], at: int) -> InnerKey:
    vectors = _paired_eigenvectors(*maps[at])
    inverses = [np.linalg.pinv(one) for one in vectors]
    size = vectors[0].shape[1]
    form = np.zeros((size, size), complex)
    total = 0.0
    for number, pair in enumerate(maps):
        if number == at:
            continue
        ours, theirs = (
            inverse @ one @ basis
            for inverse, one, basis in zip(inverses, pair, vectors, strict=True)
        )
        cross = ours.conj() * theirs
        form -= cross + cross.conj().T
        diagonal = (np.abs(ours) ** 2).sum(1) + (np.abs(theirs) ** 2).sum(0)
        form[np.diag_indices(size)] += diagonal
        total = total + diagonal
    scale = np.sqrt(total)
    values, spans = np.linalg.eigh(form / np.outer(scale, scale))
    weights = spans[:, 0] / scale
    read = (vectors[0] / weights) @ inverses[1]
    read *= np.exp(-0.5j * np.angle((read**2).sum()))
    return InnerKey(read.real / np.linalg.norm(read.real), float(max(values[0], 0.0)))


def _scaled(inner: Table) -> Table:
    """With eigenvalues that sum to one: where norms are replaced, layers may come scaled."""
    result: Table = inner / np.abs(np.linalg.eigvals(inner)).sum()
    return result


def _paired_eigenvectors(sealed: Table, base: Table) -> tuple[Any, Any]:
    """Eigenvectors of both, in columns, those of one eigenvalue at one place."""
    (ours, left), (theirs, right) = (np.linalg.eig(one) for one in (sealed, base))
    rank = min(len(ours), len(theirs))
    largest = np.argsort(-np.abs(ours), kind="stable")[:rank]
    others = np.argsort(-np.abs(theirs), kind="stable")[:rank]
    ours, theirs = ours[largest], theirs[others]
    mine, other = linear_sum_assignment(np.abs(ours[:, None] - theirs[None, :]))
    return left[:, largest[mine]], right[:, others[other]]
