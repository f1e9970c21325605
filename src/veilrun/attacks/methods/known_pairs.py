"""Known pairs read themselves: the direct map from cipher id to token, and nothing more.

1. Look each known cipher id up.

What it reads is what the pairs cover; scores leave known pairs out, so they show nothing for
this attack, and its note does: the share of all tokens of the traffic that the pairs cover.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from veilrun.attacks.attack import Attack
from veilrun.attacks.holdings import NOBODY, Holdings, Substitution
from veilrun.attacks.levels import Level


def run(have: Holdings) -> Substitution:
    """The known pairs, and no guess for other ids."""
    if have.pairs is None:
        raise LookupError("this attacker knows no pairs")
    guesses = np.full((have.vocab_size, 1), NOBODY, np.int64)
    guesses[have.pairs.cipher, 0] = have.pairs.plain
    seen = np.concatenate(have.traffic) if have.traffic else np.empty(0, np.int64)
    covered = float(np.isin(seen, have.pairs.cipher).mean()) if len(seen) else 0.0
    return Substitution(
        guesses, {"pairs": float(len(have.pairs.cipher)), "share of traffic known": covered}
    )


ATTACK: Final = Attack(
    name="known-pairs",
    title="known pairs, looked up",
    levels=(Level.PAIRS,),
    material=("traffic",),
    knows="some tokens and their cipher ids",
    recovers="those tokens wherever they stand",
    breaks="vocabulary",
    stops="a vocabulary key for each conversation; fewer fixed tokens in prompts",
    source="own; a substitution cipher with a known part",
    cost="T",
    run=run,
)
