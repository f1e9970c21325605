"""Known pairs fit the key: a ridge map from sealed rows to base rows, which then reads all rows.

1. Choose the penalty by known pairs left out of the fit (five parts in turn).
2. Map the embedding, and the head where there is one; the base row with the largest sum of
   cosines is the token.
3. Let the maps teach themselves (`ridge.self_train`): matches that stand out join the pairs.
4. Of 2 and 3 take the one whose guesses name more different tokens.

Fails with far fewer pairs than the table has columns, most of all under noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from veilrun.attacks.attack import Attack
from veilrun.attacks.holdings import Holdings, Pairs, Substitution
from veilrun.attacks.levels import Level
from veilrun.attacks.ridge import (
    Learnt,
    View,
    candidates,
    distinct_share,
    match_rows,
    sample_rows,
    self_train,
    through_maps,
    views_of,
)
from veilrun.attacks.weights import Ids

_PENALTIES: Final = (1e-9, 1e-3, 1e-2, 0.05, 0.3)
_PARTS: Final = 5


def run(have: Holdings) -> Substitution:
    """Fit the key on known pairs."""
    pairs = have.pairs
    if pairs is None or len(pairs.cipher) < _PARTS:
        raise LookupError(f"fewer than {_PARTS} known pairs")
    views = views_of(*have.tables)
    penalty = max(_PENALTIES, key=lambda one: _held_out(views, pairs, one))
    sample = sample_rows(views[0].sealed)
    direct, _ = match_rows(through_maps(views, pairs, penalty), sample, 1)
    plain_fit = Learnt(pairs, penalty, distinct_share(direct[:, 0]))
    learnt = self_train(views, pairs, pairs)
    taught = learnt.distinct > plain_fit.distinct
    found = candidates(views, learnt if taught else plain_fit)
    notes = {"pairs": len(pairs.cipher), "penalty": penalty, "self-trained": taught}
    return Substitution(found, {name: float(value) for name, value in notes.items()})


def _held_out(views: Sequence[View], pairs: Pairs, penalty: float) -> float:
    """How well pairs that the maps were not fitted on are read: hits, then cosines."""
    hits, cosines = [], []
    places = np.arange(len(pairs.cipher))
    for part in range(_PARTS):
        out = places % _PARTS == part
        mapped = through_maps(views, Pairs(pairs.cipher[~out], pairs.plain[~out]), penalty)
        held: Ids = pairs.cipher[out]
        found, _ = match_rows(mapped, held, 1)
        hits.append(found[:, 0] == pairs.plain[out])
        near = sum((one.sealed[held] * one.base[pairs.plain[out]]).sum(1) for one in mapped)
        cosines.append(near / sum((one.base[:1] ** 2).sum() for one in mapped))
    return float(np.concatenate(hits).mean() + 1e-3 * np.concatenate(cosines).mean())


ATTACK: Final = Attack(
    name="known-pairs-ridge",
    title="key fitted on known pairs",
    levels=(Level.PAIRS,),
    material=("tables",),
    knows="the tables of both models, and some tokens with their cipher ids",
    recovers="the vocabulary's permutation",
    breaks="invertible",
    stops="fewer known pairs than the key has columns, by far; no fixed tokens in prompts",
    source="ridge regression on known pairs; self-training after Artetxe and others (2018)",
    cost="n d^2 + d^3 to fit, V^2 d to compare",
    run=run,
)
