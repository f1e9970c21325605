"""Neighbours: under a fixed permutation, which tokens follow which stays as it was.

1. Count the commonest 1,000 ids on the wire and as many tokens of public text, and for both how
   often each follows each. Roots of these counts are two graphs that should be one.
2. Align them, from the permutation that the bare counts suggest (`alignment`).
3. Align again from there by likelihood: counts on the wire against logarithms of the public
   text's transition probabilities, smoothed.
4. Whatever was seen, common or not, is compared by its neighbours, which are known by now: those
   are the further guesses, and the first ones for rarer ids.

Fails on traffic whose order says nothing, and on traffic that is too short: rare tokens have
few neighbours to be known by.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np

from veilrun.attacks.alignment import align, alike, evidence_of_counts
from veilrun.attacks.attack import Attack
from veilrun.attacks.counts import commonest, counts_of, followers, public_text
from veilrun.attacks.holdings import NOBODY, Holdings, Substitution
from veilrun.attacks.levels import Level
from veilrun.attacks.matching import nearest_by_cosine
from veilrun.attacks.weights import Ids, Table

_N_ALIGNED: Final = 1000
_N_ANCHORS: Final = 500
_N_COMPARED: Final = 10_000
_N_GUESSES: Final = 100
_PRIOR: Final = 5.0
"""Transitions that smoothing adds to each token, shared out by frequency."""


def run(have: Holdings, corpus: str) -> Substitution:
    """Align the neighbours of ids with those of tokens."""
    theirs = _count(have.traffic, have.vocab_size)
    ours = _count(public_text(have, corpus), have.vocab_size)
    start = alike(evidence_of_counts(theirs.common_counts, ours.common_counts))
    first = align([_roots(theirs.graph)], [_roots(ours.graph)], start)
    begun = np.eye(len(start))[first.order]
    second = align([theirs.graph], [_log_chances(ours.graph)], begun)
    return Substitution(
        _guesses(theirs, ours, second.order),
        {
            "traffic_tokens": float(theirs.counts.sum()),
            "aligned_ids": float(len(start)),
            "rounds": float(first.n_rounds + second.n_rounds),
            "affinity": first.agreement,
        },
    )


@dataclass(frozen=True, eq=False)
class _Counted:
    """counts: [vocabulary]. common: the ids to align. graph: who of them follows whom."""

    texts: Sequence[Ids]
    counts: Table
    common: Ids
    graph: Table

    @property
    def common_counts(self) -> Table:
        return self.counts[self.common]


def _count(texts: Sequence[Ids], vocab_size: int) -> _Counted:
    counts = counts_of(texts, vocab_size)
    common = commonest(counts, _N_ALIGNED)
    return _Counted(texts, counts, common, followers(texts, common, common, vocab_size))


def _roots(graph: Table) -> Table:
    """Square roots: the spread of a count's root does not depend on the count."""
    roots: Table = np.sqrt(graph / max(float(graph.sum()), 1.0))
    return roots


def _log_chances(graph: Table) -> Table:
    """[n, n]: the logarithm of how probably j follows i."""
    often = graph.sum(0) + 0.5
    smoothed = graph + _PRIOR * often / often.sum()
    chances: Table = np.log(smoothed / smoothed.sum(1, keepdims=True))
    return chances


def _guesses(theirs: _Counted, ours: _Counted, order: Ids) -> Ids:
    """[vocabulary, k]: the aligned token first, then tokens with similar neighbours."""
    anchors = theirs.common[:_N_ANCHORS]
    known = ours.common[order][:_N_ANCHORS]
    ids, tokens = _seen(theirs.counts), _seen(ours.counts)
    mine, there = _neighbours(theirs, ids, anchors), _neighbours(ours, tokens, known)
    near, _ = nearest_by_cosine(mine, there, k=_N_GUESSES)
    candidates = np.full((len(theirs.counts), near.shape[1] + 1), NOBODY, np.int64)
    candidates[ids, 1:] = tokens[near]
    candidates[ids, 0] = tokens[near[:, 0]]
    candidates[theirs.common, 0] = ours.common[order]
    return candidates


def _seen(counts: Table) -> Ids:
    return commonest(counts, min(_N_COMPARED, int((counts > 0.0).sum())))


def _neighbours(side: _Counted, ids: Ids, anchors: Ids) -> Table:
    """[ids, 2 anchors]: roots of how often each anchor comes after and before each id."""
    size = len(side.counts)
    after = followers(side.texts, ids, anchors, size)
    before = followers(side.texts, anchors, ids, size).T
    roots: Table = np.sqrt(np.concatenate([after, before], axis=1))
    return roots


def _attack(corpus: str, described: str) -> Attack:
    return Attack(
        name=f"sequence-deciphering-{corpus}",
        title=f"who follows whom, {described}",
        levels=(Level.WIRE,),
        material=("traffic",),
        knows=f"cipher ids in their order, and public text: {described}",
        recovers="the vocabulary's permutation, as far as its ids occur",
        breaks="any fixed permutation of ids, given enough traffic",
        stops="keys that live shorter than the traffic it needs, or an end of the model kept back",
        source="own; seeded graph matching (FAQ, Vogelstein et al., PLOS ONE 2015) on bigrams",
        cost="K^3 a round for the K commonest ids, S^2 K to compare all S that occur",
        run=partial(run, corpus=corpus),
    )


ATTACKS: Final = (
    _attack("domain", "the same kind of text"),
    _attack("same", "the very same source"),
)
