"""Shared eigenvectors break every exact key of real tables, and covariant keys at their default
noise where there is a head; noise four times as large stops them."""

from __future__ import annotations

import pytest
from red_team_rig import KEY, part_of_minilm, recovered, sealed, stories, subject, unrelated

from veilrun.attacks.methods.eigenvector_fingerprint import ATTACK
from veilrun.attacks.rivals import Noise, covariant_copy
from veilrun.attacks.weights import Weights, read_weights
from veilrun.bundled import prompter


def bundled() -> Weights:
    return read_weights(prompter())


@pytest.mark.parametrize(
    "tables", [stories, bundled, part_of_minilm], ids=["stories260K", "prompter", "MiniLM"]
)
@pytest.mark.parametrize("rival", ["orthogonal", "invertible"])
def test_any_exact_key_falls(tables, rival):
    weights = tables()
    assert recovered(ATTACK, subject(weights, sealed(weights, rival))) > 0.99


@pytest.mark.parametrize("amount", [0.5, 1.0])
def test_covariant_keys_of_the_bundled_model_fall(amount):
    weights = bundled()
    noise = Noise(amount, amount / 5)
    copy = covariant_copy(weights, KEY.stream("eigen", str(amount)), noise)
    assert recovered(ATTACK, subject(weights, copy)) > 0.95


def test_four_times_the_default_noise_stops_it():
    weights = bundled()
    copy = covariant_copy(weights, KEY.stream("eigen", "4"), Noise(4.0, 0.8))
    assert recovered(ATTACK, subject(weights, copy)) < 0.05


def test_unrelated_tables_match_by_chance_only():
    weights = bundled()
    of = subject(weights, sealed(weights, "invertible"), base=unrelated(weights))
    assert recovered(ATTACK, of) < 0.02
