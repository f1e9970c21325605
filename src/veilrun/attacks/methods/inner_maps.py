"""The key from the layers alone: noise on embedding and head does not touch it.

1. `inner_key` finds the stream's key, up to a scalar, from products inside the layers, which
   are exact under any key. No row of the vocabulary is used.
2. It takes both vocabulary tables back to the base's basis. The scalar's sign is the one whose
   cosines are larger.
3. The base row with the largest sum of cosines is the token.
4. `ridge.self_train` goes on from those matches; of both results, the one whose guesses name
   more different tokens.

What is left to protect a token is noise on its own two rows, which has to drown a vector of the
hidden size. Fails for one layer, and where the layers' own weights carry noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from veilrun.attacks.attack import Attack
from veilrun.attacks.holdings import Holdings, Pairs, Substitution
from veilrun.attacks.inner_key import InnerKey, find_inner_key
from veilrun.attacks.levels import Level
from veilrun.attacks.matching import unit
from veilrun.attacks.ridge import (
    ENOUGH,
    View,
    candidates,
    confident,
    distinct_share,
    match_rows,
    sample_rows,
    self_train,
    views_of,
)
from veilrun.attacks.weights import Ids, Table, Weights


@dataclass(frozen=True, eq=False)
class Sampled:
    """cipher: ids looked at. found, cosines: [n, 2], the two best base rows of each."""

    cipher: Ids
    found: Ids
    cosines: Table

    @property
    def seeds(self) -> Pairs:
        """All matches, each base row once."""
        margins = self.cosines[:, 0] - self.cosines[:, 1]
        return confident(self.cipher, self.found[:, 0], margins, len(self.cipher))


def run(have: Holdings) -> Substitution:
    """Find the key inside, and read the vocabulary with it."""
    sealed, base = have.tables
    key = find_inner_key(sealed, base)
    mapped, first = read_with(key, sealed, base)
    views = views_of(sealed, base)
    direct = distinct_share(first.found[:, 0])
    learnt = self_train(views, first.seeds) if direct <= ENOUGH else None
    taught = learnt is not None and learnt.distinct > direct
    if learnt is not None and taught:
        guesses = candidates(views, learnt)
    else:
        guesses, _ = match_rows(mapped, np.arange(sealed.vocab_size), 10)
    return Substitution(guesses, {"misfit of layers": key.misfit, "self-trained": float(taught)})


def read_with(key: InnerKey, sealed: Weights, base: Weights) -> tuple[list[View], Sampled]:
    """The views in the base's basis, under the better sign, and what they read of a sample."""
    sample = sample_rows(sealed.embedding)
    tried = []
    for sign in (1.0, -1.0):
        views = _through_key(key, sign, sealed, base)
        tried.append((views, Sampled(sample, *match_rows(views, sample, 2))))
    return max(tried, key=lambda one: float(one[1].cosines[:, 0].sum()))


def _through_key(key: InnerKey, sign: float, sealed: Weights, base: Weights) -> list[View]:
    views = [View(sign * unit(sealed.embedding @ key.read), unit(base.embedding))]
    if sealed.head is not None and base.head is not None:
        views.append(View(sign * unit(sealed.head @ key.write.T), unit(base.head)))
    return views


ATTACK: Final = Attack(
    name="inner-maps",
    title="the key from inside the layers",
    levels=(Level.BASE, Level.FINE_TUNE),
    material=("tables",),
    knows="the tables of both models",
    recovers="the residual key, and with it the vocabulary's permutation",
    breaks="invertible",
    stops="noise on the layers' own weights; weights with no public twin",
    source="own; R^T W of an MLP keeps its eigenvalues under every key of the stream",
    cost="d^3 for each layer, V^2 d to compare",
    run=run,
)
