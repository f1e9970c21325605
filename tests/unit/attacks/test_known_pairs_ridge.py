"""A key fitted on known pairs: as many pairs as columns give any key away, and fewer do too once
matches teach more; not for unrelated tables."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from red_team_rig import KEY, part_of_minilm, recovered, sealed, stories, subject, unrelated

from veilrun.attacks.levels import Level
from veilrun.attacks.methods.known_pairs_ridge import ATTACK
from veilrun.attacks.rivals import Noise, covariant_copy
from veilrun.attacks.weights import read_weights
from veilrun.bundled import prompter


def bundled():
    return read_weights(prompter())


def known_of(weights, copy, base=None):
    """A subject whose attacker got random tokens to be encrypted."""
    tokens = np.random.default_rng(3).permutation(weights.vocab_size)
    return replace(subject(weights, copy, base=base), corpora={"same": [tokens]})


@pytest.mark.parametrize(
    ("tables", "n_pairs"),
    [(stories, 128), (bundled, 256), (part_of_minilm, 512)],
    ids=["stories260K", "prompter", "MiniLM"],
)
def test_as_many_pairs_as_columns_give_an_invertible_key_away(tables, n_pairs):
    weights = tables()
    of = known_of(weights, sealed(weights, "invertible"))
    assert recovered(ATTACK, of, Level.PAIRS, n_pairs) > 0.99


def test_64_pairs_suffice_for_160_columns_of_default_noise():
    weights = bundled()
    copy = covariant_copy(weights, KEY.stream("pairs"), Noise())
    assert recovered(ATTACK, known_of(weights, copy), Level.PAIRS, 64) > 0.95


def test_eight_pairs_under_noise_are_too_few():
    weights = bundled()
    copy = covariant_copy(weights, KEY.stream("pairs"), Noise(4.0, 0.8))
    assert recovered(ATTACK, known_of(weights, copy), Level.PAIRS, 8) < 0.05


def test_unrelated_tables_match_by_chance_only():
    weights = bundled()
    of = known_of(weights, sealed(weights, "invertible"), base=unrelated(weights))
    assert recovered(ATTACK, of, Level.PAIRS, 128) < 0.02


def test_too_few_pairs_to_leave_any_out_are_refused():
    weights = stories()
    of = known_of(weights, sealed(weights, "invertible"))
    with pytest.raises(LookupError, match="fewer than 5"):
        ATTACK.run(of.holdings(Level.PAIRS, 4))
