"""Two geometries of one language: the sealed tables', and one made of public text alone.

No base is needed. A key that is orthogonal keeps every angle between rows of a table, and rows
of tokens that come in the same places point the same way, in every model of the language.

1. Take the ids that are common in the traffic, and as many tokens of public text.
2. Of the text make what the tables should look like: tokens are near each other in the head if
   the same tokens come before them, and in the embedding if they have the same neighbours on
   both sides. Roots of shares are compared, by cosine.
3. Align the two geometries (`alignment`), with the counts as evidence; from the counts alone,
   and from sorted similarities as Artetxe et al. have it (ACL 2018). The better end counts.

The order of the ids in the traffic is not used: this says what the tables add to counts.
Fails where few ids are common; keys that change angles weaken it, as far as they change them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from veilrun.attacks.alignment import Alignment, align, alike, evidence_of_counts
from veilrun.attacks.attack import Attack
from veilrun.attacks.counts import commonest, counts_of, followers, public_text
from veilrun.attacks.holdings import NOBODY, Holdings, Substitution
from veilrun.attacks.levels import Level
from veilrun.attacks.matching import standardised, unit
from veilrun.attacks.weights import Table

_N_ALIGNED: Final = 1000
_COMMON: Final = 20
"""Occurrences that make an id common: fewer say little about its neighbours."""
_N_GUESSES: Final = 100
_WEIGHT_OF_COUNTS: Final = 0.02
"""Of the mean log-likelihood of counts, where full agreement of two geometries is worth 1."""


def run(have: Holdings) -> Substitution:
    """Align the sealed tables with the geometry of public text."""
    if have.sealed is None:
        raise LookupError("this attacker lacks the encrypted model")
    text = public_text(have, "same")
    tables = have.sealed.weights
    theirs, ours = counts_of(have.traffic, have.vocab_size), counts_of(text, have.vocab_size)
    n = min(_N_ALIGNED, int((theirs >= _COMMON).sum()), int((ours >= _COMMON).sum()))
    if n < 2:
        raise LookupError("the traffic or the public text is too short: no id is common")
    ids, tokens = commonest(theirs, n), commonest(ours, n)
    after = followers(text, tokens, tokens, have.vocab_size)
    before = _shares(after.T)
    sealed = [geometry(tables.embedding[ids])]
    expected = [geometry(np.concatenate([before, _shares(after)], axis=1))]
    if tables.head is not None:
        sealed.append(geometry(tables.head[ids]))
        expected.append(geometry(before))
    evidence = evidence_of_counts(theirs[ids], ours[tokens])
    best = align_geometries(sealed, expected, evidence)
    candidates = np.full((have.vocab_size, min(_N_GUESSES, n) + 1), NOBODY, np.int64)
    candidates[ids, 0] = tokens[best.order]
    candidates[ids, 1:] = tokens[np.argsort(-best.scores, axis=1)[:, :_N_GUESSES]]
    return Substitution(candidates, {"aligned_ids": float(n), "agreement": best.agreement})


def align_geometries(theirs: Sequence[Table], ours: Sequence[Table], evidence: Table) -> Alignment:
    """Align matrices of similarities [n, n] from two starts; evidence: log-likelihoods [n, n]."""
    weighed = np.maximum(evidence, -8.0) * (_WEIGHT_OF_COUNTS * len(theirs) / len(evidence))
    by_rows = evidence.copy()
    for first, second in zip(theirs, ours, strict=True):
        by_rows -= 0.5 * _squared_distances(first, second)
    starts = [alike(evidence), alike(by_rows)]
    ends = [align(theirs, ours, start, weighed) for start in starts]
    return max(ends, key=lambda end: end.agreement)


def _shares(counts: Table) -> Table:
    """Roots of each row's shares."""
    roots: Table = np.sqrt(counts / np.maximum(counts.sum(1, keepdims=True), 1.0))
    return roots


def geometry(rows: Table) -> Table:
    """[n, n]: cosines of centred rows, less the diagonal and what rows share with all."""
    directions = unit(rows - rows.mean(0))
    cosines = directions @ directions.T
    np.fill_diagonal(cosines, 0.0)
    means = cosines.sum(1) / (len(rows) - 1)
    cosines += means.mean() - means[:, None] - means
    np.fill_diagonal(cosines, 0.0)
    scaled: Table = cosines / max(float(np.linalg.norm(cosines)), 1e-300)
    return scaled


def _squared_distances(theirs: Table, ours: Table) -> Table:
    """[n, n]: between rows, each sorted; every place of the order counts the same."""
    both = np.sort(np.concatenate([theirs, ours]), axis=1)
    places = np.linspace(0, both.shape[1] - 1, 64).round().astype(int)
    first, second = np.split(standardised(both[:, places]), 2)
    squares: Table = (
        np.square(first).sum(1)[:, None] + np.square(second).sum(1) - 2.0 * first @ second.T
    )
    return squares


ATTACK: Final = Attack(
    name="geometry-alignment",
    title="the language's geometry",
    levels=(Level.HOST,),
    material=("tables", "traffic"),
    knows="the encrypted tables, counts of cipher ids, and public text of the very same source",
    recovers="the ids that are common in the traffic",
    breaks="orthogonal",
    stops="tables kept back; a key that changes angles weakens it",
    source="own; Artetxe et al. (ACL 2018) and FAQ (Vogelstein et al., PLOS ONE 2015)",
    cost="K^3 a round for the K common ids",
    run=run,
)
