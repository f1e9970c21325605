"""Products of two tables: exact keys cancel in them; noise blurs them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from red_team_rig import KEY, recovered, sealed, stories, subject, unrelated

from veilrun.attacks.methods.weight_products import ATTACK
from veilrun.attacks.rivals import Noise, covariant_copy
from veilrun.attacks.weights import read_weights
from veilrun.bundled import prompter


def bundled():
    return read_weights(prompter())


@pytest.mark.parametrize("tables", [stories, bundled], ids=["stories260K", "prompter"])
@pytest.mark.parametrize("rival", ["scaled", "orthogonal", "invertible"])
def test_exact_keys_cancel(tables, rival):
    weights = tables()
    assert recovered(ATTACK, subject(weights, sealed(weights, rival))) > 0.99


def test_four_times_the_default_noise_stops_them():
    weights = bundled()
    copy = covariant_copy(weights, KEY.stream("products"), Noise(4.0, 0.8))
    assert recovered(ATTACK, subject(weights, copy)) < 0.3


def test_unrelated_tables_match_by_chance_only():
    weights = bundled()
    of = subject(weights, sealed(weights, "invertible"), base=unrelated(weights))
    assert recovered(ATTACK, of) < 0.02


def test_a_node_without_a_head_is_compared_by_the_rest():
    weights = stories()
    copy = sealed(weights, "invertible")
    copy = replace(copy, weights=replace(copy.weights, head=None))
    assert recovered(ATTACK, subject(weights, copy)) > 0.99
