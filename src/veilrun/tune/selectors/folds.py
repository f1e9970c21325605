"""Which rows are held out together: int64 [n], a fold's number for each row.

Invariant: rows of one word (a model, a machine) are in one fold, so a learner that is validated on
them has not seen their like.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final, TypeVar

import numpy as np

from veilrun.tune.scenario import Ints, Scenario
from veilrun.tune.selectors.base import Fitted
from veilrun.tune.selectors.charge import charged

N_INNER: Final = 5
"""Inner folds: each is one more fit of every learner; more than five change its data little."""

Setting = TypeVar("Setting")


def at_random(n_rows: int, n_folds: int, seed: int) -> Ints:
    """Folds of equal size, up to one row."""
    folds = np.empty(n_rows, np.int64)
    order = np.random.default_rng(seed).permutation(n_rows)
    folds[order] = np.arange(n_rows) % n_folds
    return folds


def by_word(words: Sequence[str]) -> Ints:
    """A fold for each word, in the words' alphabetical order."""
    return np.unique(np.array(words, dtype=np.str_), return_inverse=True)[1].astype(np.int64)


def inner(train: Scenario, seed: int) -> Ints:
    """At most `N_INNER` folds of training rows.

    They merge `train.folds` where those tell at least two things apart; else they are random ones,
    which is all one can do with a single model or machine.
    """
    if train.folds is not None:
        given, numbers = np.unique(train.folds, return_inverse=True)
        if len(given) > 1:
            return at_random(len(given), min(len(given), N_INNER), seed)[numbers]
    return at_random(len(train.tasks), N_INNER, seed)


def inner_splits(train: Scenario, folds: Ints) -> Iterator[tuple[Scenario, Scenario]]:
    """(rows to learn from, rows to ask about) of each fold; tasks without a measured arm are left
    out.
    """
    useful = train.applicable.any(1)
    for fold in np.unique(folds):
        seen, asked = useful & (folds != fold), useful & (folds == fold)
        if seen.any() and asked.any():
            yield train.rows(seen), train.rows(asked)


def best_setting(
    train: Scenario,
    settings: Sequence[Setting],
    fit: Callable[[Scenario, Setting], Fitted],
    seed: int,
) -> Setting:
    """The setting whose choices lose least on held-out training rows; the first of equals."""
    total = np.zeros(len(settings))
    for seen, asked in inner_splits(train, inner(train, seed)):
        for i, setting in enumerate(settings):
            fitted = fit(seen, setting)
            chosen = fitted.choose(asked.features, asked.applicable, asked.task_texts)
            total[i] += charged(asked, chosen, fitted.uses_features).sum()
    return settings[int(total.argmin())]
