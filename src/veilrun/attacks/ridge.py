"""Linear maps from sealed rows to base rows, learnt from matched rows; their matches teach more.

A view is a table and its sealed copy, with one row for each token on either side: the embedding,
or the head. Rows of all views moved by one permutation, so what one view says of a row counts
for the others.

`self_train` goes from a few matches, many of them wrong, to all:

1. fit one ridge map per view on the matches;
2. send a sample of the sealed rows through the maps, and find the base row with the largest sum
   of cosines; a view counts by how closely its matches fit;
3. keep the rows whose best base row stands out most, no base row twice, and `GROWTH` times as
   many as in the round before; from 1 again, until all of the sample is kept.

Known pairs, if there are any, stay in every fit.

Fails (guesses that crowd on few base rows, which `Learnt.distinct` shows) if too few of the
first matches are right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from veilrun.attacks.holdings import Pairs
from veilrun.attacks.matching import nearest_by_cosine, unit
from veilrun.attacks.weights import Ids, Table, Weights

PENALTIES: Final = (1e-9, 0.05)
"""Of ridge maps, in mean squares of a column: none to speak of, which exact keys ask for (some
real tables have rows that differ in the sixth digit only), and one against noise."""

GROWTH: Final = 1.8
_SAMPLE: Final = 2048
ENOUGH: Final = 0.99


@dataclass(frozen=True, eq=False)
class View:
    """sealed, base: [vocabulary, width]; the widths may differ."""

    sealed: Table
    base: Table


@dataclass(frozen=True, eq=False)
class Learnt:
    """pairs: matches to fit the last maps on, known ones among them. penalty: of that fit.

    distinct: of a sample of sealed rows, the share whose first guesses are different base rows:
    1 for a permutation, and well below where the guesses are chance. An attacker can compute it.
    """

    pairs: Pairs
    penalty: float
    distinct: float


def views_of(sealed: Weights, base: Weights) -> list[View]:
    """The vocabulary's tables that both models have."""
    views = [View(sealed.embedding, base.embedding)]
    if sealed.head is not None and base.head is not None:
        views.append(View(sealed.head, base.head))
    return views


def ridge_map(rows: Table, targets: Table, penalty: float) -> Table:
    """A with rows A near targets."""
    gram = rows.T @ rows
    weight = penalty * np.trace(gram) / len(gram)
    found: Table = np.linalg.solve(gram + weight * np.eye(len(gram)), rows.T @ targets)
    return found


def through_maps(views: Sequence[View], pairs: Pairs, penalty: float) -> list[View]:
    """The views with sealed rows mapped to the base's basis, weighted for a sum of cosines."""
    mapped = []
    for view in views:
        rows, targets = view.sealed[pairs.cipher], view.base[pairs.plain]
        key = ridge_map(rows, targets, penalty)
        cosine = float((unit(rows @ key) * unit(targets)).sum(1).mean())
        weight = np.sqrt(max(cosine, 0.01) / (1.01 - cosine))
        mapped.append(View(unit(view.sealed @ key) * weight, unit(view.base) * weight))
    return mapped


def match_rows(views: Sequence[View], cipher: Ids, k: int) -> tuple[Ids, Table]:
    """For each of `cipher`: k base rows by the sum of cosines over views, and those sums."""
    sealed = np.concatenate([view.sealed[cipher] for view in views], axis=1)
    base = np.concatenate([view.base for view in views], axis=1)
    return nearest_by_cosine(sealed, base, k)


def self_train(views: Sequence[View], seeds: Pairs, known: Pairs | None = None) -> Learnt:
    """More matches from few. seeds: a first guess; known: pairs that are certain."""
    best: Learnt | None = None
    for penalty in PENALTIES:
        found = _rounds(views, seeds, known, penalty)
        if best is None or found.distinct > best.distinct:
            best = found
        if best.distinct > ENOUGH:
            break
    if best is None:
        raise LookupError("no penalty to try")
    return best


def _rounds(views: Sequence[View], seeds: Pairs, known: Pairs | None, penalty: float) -> Learnt:
    sample = sample_rows(views[0].sealed)
    matches, n_kept, last = seeds, float(len(seeds.cipher)), False
    while True:
        mapped = through_maps(views, joined(matches, known), penalty)
        found, cosines = match_rows(mapped, sample, 2)
        n_kept = min(n_kept * GROWTH, len(sample))
        matches = confident(sample, found[:, 0], cosines[:, 0] - cosines[:, 1], int(n_kept))
        if last:
            return Learnt(joined(matches, known), penalty, distinct_share(found[:, 0]))
        last = n_kept == len(sample)


def candidates(views: Sequence[View], learnt: Learnt) -> Ids:
    """[vocabulary, 10]: plain ids for every cipher id."""
    mapped = through_maps(views, learnt.pairs, learnt.penalty)
    return match_rows(mapped, np.arange(len(views[0].sealed)), 10)[0]


def sample_rows(sealed: Table) -> Ids:
    """Cipher ids to learn from: all of a small vocabulary, several times the width of a large."""
    n_rows, width = sealed.shape
    n = min(n_rows, max(_SAMPLE, 6 * width))
    return np.sort(np.random.default_rng(0).permutation(n_rows)[:n])


def confident(cipher: Ids, plain: Ids, margins: Table, n: int) -> Pairs:
    """The n matches with the largest margins, each base row once."""
    order = np.argsort(-margins, kind="stable")
    _, first = np.unique(plain[order], return_index=True)
    kept = order[np.sort(first)][:n]
    return Pairs(cipher[kept], plain[kept])


def joined(matches: Pairs, known: Pairs | None) -> Pairs:
    """Known pairs, and what was matched beside them."""
    if known is None:
        return matches
    new = ~(np.isin(matches.cipher, known.cipher) | np.isin(matches.plain, known.plain))
    return Pairs(
        np.concatenate([known.cipher, matches.cipher[new]]),
        np.concatenate([known.plain, matches.plain[new]]),
    )


def distinct_share(guesses: Ids) -> float:
    """The share of guesses that are different ones."""
    return len(np.unique(guesses)) / len(guesses)
