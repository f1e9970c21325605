"""Several encrypted copies of one model: fresh noise averages away where rows can be linked.

1. Of each copy find the key from its layers (`inner_key`), and bring its vocabulary tables back
   to the base's basis.
2. Link each further copy to the first: by the same cipher id, if rows of one id are alike (the
   copies share the vocabulary's key); else by the base row that both resemble most.
3. Average linked rows over the copies, and match the average to the base.
4. Of this and the first copy alone, the one whose guesses name more different tokens.

What to expect: with the base at hand, copies under independent vocabulary keys are independent
given the base, so another copy says nothing new of the first one's ids. Averaging gains where
copies share the vocabulary's key.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from veilrun.attacks.attack import Attack
from veilrun.attacks.holdings import Holdings, Substitution
from veilrun.attacks.inner_key import find_inner_key
from veilrun.attacks.levels import Level
from veilrun.attacks.matching import unit
from veilrun.attacks.methods.inner_maps import read_with
from veilrun.attacks.ridge import View, distinct_share, match_rows
from veilrun.attacks.weights import Ids

_ALIKE: Final = 6.0


def run(have: Holdings) -> Substitution:
    """Link the copies, average, match."""
    sealed, base = have.tables
    copies = [sealed, *(one.weights for one in have.copies)]
    brought = [read_with(find_inner_key(one, base), one, base)[0] for one in copies]
    every = np.arange(sealed.vocab_size)
    alone, _ = match_rows(brought[0], every, 10)
    links, n_same = [every], 0
    for one in brought[1:]:
        same = _shares_ids(brought[0], one)
        n_same += same
        links.append(every if same else _link(one, alone[:, 0]))
    found, _ = match_rows(_average(brought, links), every, 10)
    better = distinct_share(found[:, 0]) >= distinct_share(alone[:, 0])
    notes = {
        "copies": float(len(copies)),
        "copies that share the vocabulary's key": float(n_same),
        "averaged": float(better),
    }
    return Substitution(found if better else alone, notes)


def _shares_ids(first: Sequence[View], other: Sequence[View]) -> bool:
    """Whether rows of one cipher id are alike, beyond rows of different ids: by a z-score."""
    same, different = (
        np.concatenate(
            [
                (unit(a.sealed) * unit(np.roll(b.sealed, by, 0))).sum(1)
                for a, b in zip(first, other, strict=True)
            ]
        )
        for by in (0, 1)
    )
    spread = np.sqrt((same.var() + different.var()) / len(same))
    return bool(same.mean() - different.mean() > _ALIKE * max(spread, 1e-12))


def _link(other: Sequence[View], guesses: Ids) -> Ids:
    """For each cipher id of the first copy, by its guess, the most alike id of the other."""
    turned = [View(view.base, view.sealed) for view in other]
    nearest, _ = match_rows(turned, np.arange(len(other[0].base)), 1)
    linked: Ids = nearest[guesses, 0]
    return linked


def _average(copies: Sequence[Sequence[View]], links: Sequence[Ids]) -> list[View]:
    """Views whose sealed rows are means over linked rows of all copies."""
    averaged = []
    for at, view in enumerate(copies[0]):
        rows = [copy[at].sealed[link] for copy, link in zip(copies, links, strict=True)]
        averaged.append(View(unit(np.mean(rows, axis=0)), view.base))
    return averaged


ATTACK: Final = Attack(
    name="averaging",
    title="copies averaged",
    levels=(Level.TWO_HOSTS,),
    material=("tables", "copies"),
    knows="several encrypted copies of one model, and its public weights",
    recovers="the vocabulary's permutation of the first copy",
    breaks="invertible",
    stops="one draw of noise for all copies; another vocabulary key for each",
    source="own",
    cost="that of inner-maps for each copy",
    run=run,
)
