"""Frequencies: under a fixed permutation, common tokens stay common.

1. Count the ids on the wire, and the tokens of public text.
2. Sort both by count. The token of the same rank is the first guess: of all permutations, this
   one makes the counts agree best.
3. The further guesses are the ranks around it, by how near their counts are in logarithm.

Fails for rare tokens, where many counts are equal, and as far as public text differs from the
traffic: one attack for each corpus.
"""

from __future__ import annotations

from functools import partial
from typing import Final

import numpy as np

from veilrun.attacks.attack import Attack
from veilrun.attacks.counts import commonest, counts_of, public_text
from veilrun.attacks.holdings import Holdings, Substitution
from veilrun.attacks.levels import Level
from veilrun.attacks.weights import Table

_N_GUESSES: Final = 100


def run(have: Holdings, corpus: str) -> Substitution:
    """Match ids to tokens by rank."""
    n = have.vocab_size
    theirs = counts_of(have.traffic, n)
    ours = counts_of(public_text(have, corpus), n)
    by_rank, tokens = commonest(theirs, n), commonest(ours, n)
    theirs, ours = _log_shares(theirs[by_rank]), _log_shares(ours[tokens])
    k = min(_N_GUESSES, n)
    candidates = np.empty((n, k), np.int64)
    for rank in range(n):
        first = max(0, min(rank - k // 2, n - k))
        window = np.arange(first, first + k)
        gaps = np.where(window == rank, 0.0, np.abs(ours[window] - theirs[rank]))
        candidates[by_rank[rank]] = tokens[window[np.lexsort((np.abs(window - rank), gaps))]]
    return Substitution(candidates, {"traffic_tokens": float(sum(map(len, have.traffic)))})


def _log_shares(counts: Table) -> Table:
    smoothed = counts + 0.5
    shares: Table = np.log(smoothed / smoothed.sum())
    return shares


def _attack(corpus: str, described: str) -> Attack:
    return Attack(
        name=f"token-frequency-{corpus}",
        title=f"token frequencies, {described}",
        levels=(Level.WIRE,),
        material=("traffic",),
        knows=f"counts of cipher ids, and public text: {described}",
        recovers="the vocabulary's permutation, commonest tokens first",
        breaks="any fixed permutation of ids, given enough traffic",
        stops="short-lived keys, or several cipher ids for each common token",
        source="TFMA in AloePri (arXiv 2603.01499), with counts instead of bare ranks",
        cost="T to count, V log V to sort",
        run=partial(run, corpus=corpus),
    )


ATTACKS: Final = (
    _attack("foreign", "another subject and style"),
    _attack("domain", "the same kind of text"),
    _attack("same", "the very same source"),
)
