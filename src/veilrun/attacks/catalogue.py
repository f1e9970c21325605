"""All attacks, in the order of cards: from text alone to models that run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from veilrun.attacks.attack import Attack
from veilrun.attacks.methods import (
    arrow_match,
    averaging,
    eigenvector_fingerprint,
    geometry_alignment,
    inner_maps,
    inversion_decoder,
    known_pairs,
    known_pairs_ridge,
    lineage,
    norm_scalars,
    sequence_deciphering,
    single_token_prompts,
    sinkhorn_matching,
    sort_and_hash,
    state_matching,
    svd_fingerprint,
    token_frequency,
    weight_products,
)
from veilrun.errors import UsageError

ATTACKS: Final[tuple[Attack, ...]] = (
    *token_frequency.ATTACKS,
    *sequence_deciphering.ATTACKS,
    geometry_alignment.ATTACK,
    sort_and_hash.ATTACK,
    sinkhorn_matching.ATTACK,
    svd_fingerprint.ATTACK,
    norm_scalars.ATTACK,
    arrow_match.ATTACK,
    eigenvector_fingerprint.ATTACK,
    inner_maps.ATTACK,
    weight_products.ATTACK,
    lineage.ATTACK,
    known_pairs.ATTACK,
    known_pairs_ridge.ATTACK,
    averaging.ATTACK,
    single_token_prompts.ATTACK,
    state_matching.ATTACK,
    inversion_decoder.ATTACK,
)


def verify_names(names: Sequence[str]) -> None:
    """Raise UsageError if one of `names` is no attack's."""
    known = [one.name for one in ATTACKS]
    strangers = [name for name in names if name not in known]
    if strangers:
        raise UsageError(
            f"there is no attack called {', '.join(strangers)}; there are: {', '.join(known)}"
        )
