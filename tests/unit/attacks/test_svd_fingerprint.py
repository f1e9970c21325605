"""Left singular vectors read a rotated embedding, in 16 bits and under an expanded key too."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from red_team_rig import KEY, minilm, part_of_minilm, recovered, sealed, stories, subject, unrelated

from veilrun.attacks import rivals
from veilrun.attacks.matching import nearest
from veilrun.attacks.methods.svd_fingerprint import ATTACK
from veilrun.attacks.rivals import Noise, StreamKey
from veilrun.attacks.weights import Table
from veilrun.keys import SecretStream

UNTRAINED = frozenset(range(3, 259))
"""stories260K's byte tokens: its text has none, so most of their rows are nearly one row."""


def in_16_bits(rows: Table) -> Table:
    return torch.from_numpy(rows).bfloat16().double().numpy()


@pytest.mark.parametrize("tables", [stories, part_of_minilm], ids=["stories260K", "MiniLM"])
@pytest.mark.parametrize("rival", ["permutation", "orthogonal"])
def test_singular_vectors_read_a_rotated_embedding(tables, rival):
    weights = tables()
    assert recovered(ATTACK, subject(weights, sealed(weights, rival))) == 1.0


def test_8000_words_of_minilm_stored_in_16_bits_are_read():
    base = replace(minilm(), embedding=in_16_bits(minilm().embedding[2000:10000]))
    copy = sealed(base, "orthogonal")
    stored = replace(copy.weights, embedding=in_16_bits(copy.weights.embedding))
    assert recovered(ATTACK, subject(base, replace(copy, weights=stored))) > 0.999


def test_in_16_bits_it_reads_all_that_who_has_the_key_can_read():
    base = replace(stories(), embedding=in_16_bits(stories().embedding))
    copy = sealed(base, "orthogonal")
    rows = in_16_bits(copy.weights.embedding)
    of = subject(base, replace(copy, weights=replace(copy.weights, embedding=rows)))
    key = rivals.orthogonal(KEY.stream("red-team", "orthogonal", ""), 64)
    with_key = nearest(rows @ key.read, base.embedding)[0][:, 0] == copy.order
    assert recovered(ATTACK, of) == pytest.approx(with_key.mean(), abs=0.02)
    assert with_key.mean() < 0.8
    assert recovered(ATTACK, replace(of, special=UNTRAINED)) > 0.99


@pytest.mark.parametrize("tables", [stories, part_of_minilm], ids=["stories260K", "MiniLM"])
def test_columns_that_an_expanded_key_adds_do_not_matter(tables):
    def expanded(stream: SecretStream, n: int) -> StreamKey:
        turn = stream.haar(1, n + 32)[0]
        return StreamKey(turn[:n].copy(), turn[:n].T.copy())

    weights = tables()
    copy = rivals.seal(weights, KEY.stream("expanded"), expanded)
    assert copy.weights.hidden == weights.hidden + 32
    assert recovered(ATTACK, subject(weights, copy)) == 1.0


def test_refinement_reads_through_noise():
    weights, noise = stories(), Noise(embedding=0.2, head=0.1)
    copy = rivals.seal(weights, KEY.stream("noise"), rivals.orthogonal, noise)
    assert recovered(ATTACK, replace(subject(weights, copy), special=UNTRAINED)) > 0.9


@pytest.mark.parametrize("rival", ["scaled", "invertible"])
def test_a_key_that_is_not_orthogonal_defeats_it(rival):
    weights = stories()
    assert recovered(ATTACK, subject(weights, sealed(weights, rival))) < 0.03


def test_noise_and_an_expanded_key_together_defeat_it():
    weights = stories()
    copy = rivals.covariant_copy(weights, KEY.stream("covariant"), Noise(expansion=32))
    assert recovered(ATTACK, subject(weights, copy)) < 0.03


def test_unrelated_tables_match_by_chance_only():
    weights = stories()
    of = subject(weights, sealed(weights, "orthogonal"), base=unrelated(weights))
    assert recovered(ATTACK, of) < 0.02
    noted = ATTACK.run(of.holdings(ATTACK.levels[0])).notes
    assert noted["doubt"] > 0.5  # and it knows


def test_a_constant_table_is_no_error():
    weights = replace(stories(), embedding=np.ones((512, 64)))
    assert recovered(ATTACK, subject(weights, sealed(weights, "orthogonal"))) < 0.02
