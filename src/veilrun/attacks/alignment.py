"""Which node of one graph is which of another: quadratic assignment by conditional gradients.

Wanted is the permutation P that makes two graphs agree most: sum <A, P B P^T> over pairs of
weighted graphs (A, B) on the same n nodes, plus <E, P> for other evidence E on which node is
which. FAQ (Vogelstein et al., PLOS ONE 2015):

1. Let P be any doubly stochastic matrix; begin where other evidence points.
2. Find the permutation that the gradient at P likes best (a linear assignment).
3. Go from P towards it as far as the sum grows (a parabola: exact). Repeat 2 and 3.
4. The permutation nearest to the last gradient is the answer.

Fails where the graphs share too little, or where the start points elsewhere: the sum has many
local maxima. Cost: 4 n^3 for each pair and round.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from veilrun.attacks.weights import Ids, Table

_SETTLED = 1e-3
_DOUBT = 1e-12
_SOURCES_DIFFER = 0.15


@dataclass(frozen=True, eq=False)
class Alignment:
    """order[i]: the node of `ours` that node i of `theirs` is. agreement: the sum, of `order`.

    scores: [n, n], how well each node of `ours` would be node i, all others as they are.
    """

    order: Ids
    scores: Table
    agreement: float
    n_rounds: int


def align(
    theirs: Sequence[Table],
    ours: Sequence[Table],
    start: Table,
    evidence: Table | None = None,
    *,
    n_rounds: int = 30,
) -> Alignment:
    """Align graphs [n, n], pair by pair, from the doubly stochastic `start` [n, n] onwards."""
    pairs = list(zip(theirs, ours, strict=True))
    fixed = np.zeros_like(start) if evidence is None else evidence
    soft, gradient = start, _gradient(pairs, start) + fixed
    done = 0
    while done < n_rounds:
        done += 1
        towards = np.eye(len(start))[assign(gradient)] - soft
        gained = _gradient(pairs, towards)
        step = _best_step(float((gained * towards).sum()) / 2, float((gradient * towards).sum()))
        soft, gradient = soft + step * towards, gradient + step * gained
        if step * np.abs(towards).sum() < _SETTLED * len(start):
            break
    order = assign(gradient)
    agreement = sum(float((a * b[np.ix_(order, order)]).sum()) for a, b in pairs)
    agreement += float(fixed[np.arange(len(order)), order].sum())
    return Alignment(order, gradient, agreement, done)


def assign(scores: Table) -> Ids:
    """The column for each row, each column once, with the largest sum."""
    _, columns = linear_sum_assignment(scores, maximize=True)
    order: Ids = columns.astype(np.int64)
    return order


def doubly_stochastic(weights: Table, *, n_rounds: int = 50) -> Table:
    """Scale rows and columns of positive `weights` [n, n] until both sum to one (Sinkhorn)."""
    rows, columns = np.ones(len(weights)), np.ones(len(weights))
    for _ in range(n_rounds):
        rows = 1.0 / (weights @ columns)
        columns = 1.0 / (weights.T @ rows)
    scaled: Table = weights * rows[:, None] * columns
    return scaled


def evidence_of_counts(theirs: Table, ours: Table) -> Table:
    """[n, n]: log-likelihoods that two counts are of one token, by the logarithms of shares.

    A count n strays by 1/sqrt(n) in logarithm; two sources differ by a little more than that.
    """
    first, second = theirs + 0.5, ours + 0.5
    gap = np.log(first / first.sum())[:, None] - np.log(second / second.sum())
    variance = 1.0 / first[:, None] + 1.0 / second + _SOURCES_DIFFER**2
    likelihoods: Table = -0.5 * np.square(gap) / variance
    return likelihoods


def alike(evidence: Table) -> Table:
    """[n, n], doubly stochastic: log-likelihoods as shares of belief."""
    return doubly_stochastic(np.exp(evidence - evidence.max()) + _DOUBT)


def _gradient(pairs: Sequence[tuple[Table, Table]], soft: Table) -> Table:
    total: Table = np.zeros_like(soft)
    for theirs, ours in pairs:
        total += theirs @ soft @ ours.T + theirs.T @ soft @ ours
    return total


def _best_step(curvature: float, slope: float) -> float:
    """Where curvature t^2 + slope t is largest for t in [0, 1]."""
    if curvature >= 0.0:
        return 1.0
    return min(1.0, max(0.0, -slope / (2.0 * curvature)))
