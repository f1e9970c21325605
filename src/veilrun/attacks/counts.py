"""What a reader of ids can count: how often each comes, and which follow which.

Invariant: renaming the ids of all texts renames rows and columns of every count, and changes
nothing else. That is why a fixed permutation of the vocabulary hides none of this.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from veilrun.attacks.holdings import Holdings
from veilrun.attacks.weights import Ids, Table


def counts_of(texts: Sequence[Ids], vocab_size: int) -> Table:
    """[vocabulary]: how often each id occurs."""
    total = np.zeros(vocab_size)
    for text in texts:
        total += np.bincount(text, minlength=vocab_size)
    return total


def public_text(have: Holdings, corpus: str) -> Sequence[Ids]:
    """The texts of one corpus. Raises LookupError if the attacker has none of it."""
    texts = have.corpora.get(corpus, ())
    if not any(map(len, texts)):
        raise LookupError(f"this attacker has no public text of the kind `{corpus}`")
    return texts


def followers(texts: Sequence[Ids], rows: Ids, columns: Ids, vocab_size: int) -> Table:
    """[rows, columns]: how often the id columns[j] comes right after rows[i]."""
    row_of, column_of = _places(rows, vocab_size), _places(columns, vocab_size)
    flat = np.zeros(len(rows) * len(columns))
    for text in texts:
        first, second = row_of[text[:-1]], column_of[text[1:]]
        both = (first >= 0) & (second >= 0)
        np.add.at(flat, first[both] * len(columns) + second[both], 1.0)
    return flat.reshape(len(rows), len(columns))


def commonest(counts: Table, n: int) -> Ids:
    """The n ids that come most often, the commonest first; of equals, the lower id."""
    order: Ids = np.argsort(-counts, kind="stable")[:n]
    return order


def _places(ids: Ids, vocab_size: int) -> Ids:
    places = np.full(vocab_size, -1, np.int64)
    places[ids] = np.arange(len(ids))
    return places
