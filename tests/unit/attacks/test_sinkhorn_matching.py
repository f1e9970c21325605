"""Balancing undoes scales, of rows and of columns, and nothing that mixes columns."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from red_team_rig import part_of_minilm, recovered, sealed, stories, subject, unrelated

from veilrun.attacks.methods.sinkhorn_matching import ATTACK, N_ROUNDS, _balanced


@pytest.mark.parametrize("tables", [stories, part_of_minilm], ids=["stories260K", "MiniLM"])
def test_balanced_rows_read_a_scaled_embedding(tables):
    weights = tables()
    assert recovered(ATTACK, subject(weights, sealed(weights, "scaled"))) > 0.99


@pytest.mark.parametrize("rival", ["vocabulary", "permutation"])
def test_they_read_what_is_permuted_without_scales(rival):
    weights = stories()
    assert recovered(ATTACK, subject(weights, sealed(weights, rival))) > 0.99


def test_scales_of_rows_go_as_well():
    weights, scales = stories(), 4.0 ** np.random.default_rng(3).uniform(-1, 1, size=(512, 1))
    copy = sealed(weights, "scaled")
    scaled = replace(copy.weights, embedding=copy.weights.embedding * scales)
    assert recovered(ATTACK, subject(weights, replace(copy, weights=scaled))) > 0.99


@pytest.mark.parametrize("rival", ["orthogonal", "invertible"])
def test_a_key_that_mixes_columns_defeats_them(rival):
    weights = stories()
    assert recovered(ATTACK, subject(weights, sealed(weights, rival))) < 0.03


def test_unrelated_tables_match_by_chance_only():
    weights = stories()
    of = subject(weights, sealed(weights, "scaled"), base=unrelated(weights))
    assert recovered(ATTACK, of) < 0.02


def test_balanced_tables_have_even_lengths():
    table = np.random.default_rng(0).standard_normal((60, 20)) * np.logspace(-2, 2, 20)
    table[7] = 0.0
    table[:, 3] = 0.0
    balanced = _balanced(table)
    rows, columns = np.linalg.norm(balanced, axis=1), np.linalg.norm(balanced, axis=0)
    np.testing.assert_allclose(np.delete(columns, 3), 1.0)
    np.testing.assert_allclose(np.delete(rows, 7), np.sqrt(19 / 59), rtol=1e-6)
    assert rows[7] == columns[3] == 0.0
    assert N_ROUNDS == 40
