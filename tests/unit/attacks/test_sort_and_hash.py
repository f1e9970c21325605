"""Sorted rows break signed permutations of real tables, and nothing that mixes columns."""

from __future__ import annotations

import pytest
from red_team_rig import part_of_minilm, recovered, sealed, stories, subject, unrelated

from veilrun.attacks.methods.sort_and_hash import ATTACK


@pytest.mark.parametrize("tables", [stories, part_of_minilm], ids=["stories260K", "MiniLM"])
@pytest.mark.parametrize("rival", ["vocabulary", "permutation"])
def test_sorted_rows_read_a_permuted_embedding(tables, rival):
    weights = tables()
    assert recovered(ATTACK, subject(weights, sealed(weights, rival))) > 0.99


@pytest.mark.parametrize("rival", ["scaled", "orthogonal", "invertible"])
def test_a_key_that_mixes_or_scales_columns_defeats_them(rival):
    weights = stories()
    assert recovered(ATTACK, subject(weights, sealed(weights, rival))) < 0.1


def test_unrelated_tables_match_by_chance_only():
    weights = stories()
    of = subject(weights, sealed(weights, "permutation"), base=unrelated(weights))
    assert recovered(ATTACK, of) < 0.02
