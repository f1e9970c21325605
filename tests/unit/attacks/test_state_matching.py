"""A search over states reads texts under real keys, from states alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from red_team_folders import Veiled, believing, encrypted, plain, random_model, running, unprotected

from veilrun.attacks.holdings import Model, Reading
from veilrun.attacks.levels import Level
from veilrun.attacks.methods import state_matching
from veilrun.attacks.methods.state_matching import ATTACK, run
from veilrun.attacks.metrics import score


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(state_matching, "N_TEXTS", 2)
    monkeypatch.setattr(state_matching, "N_POSITIONS", 16)


@pytest.mark.parametrize(
    ("strength", "depth"),
    [("permutation", 1), ("structured", 1), ("haar", 1), ("haar", 2), ("haar", 4)],
)
def test_states_read_texts_under_every_exact_key(tmp_path_factory, strength, depth):
    of = encrypted(tmp_path_factory.getbasetemp(), strength)
    share, reading = read(of, depth)
    assert share > 0.95
    assert reading.notes["depth"] == depth
    assert [int(one.sum()) for one in reading.tried] == [16, 16] + [0] * (len(of.secret) - 2)


def test_states_read_texts_without_a_key():
    assert read(unprotected())[0] > 0.95


def test_the_vocabulary_s_tables_are_not_needed(tmp_path_factory):
    of = encrypted(tmp_path_factory.getbasetemp(), "haar")
    hidden = replace(of.sealed.model.weights, embedding=np.zeros((1, 1)), head=None)
    bare = replace(of.sealed, model=Model(hidden, of.sealed.model.runs))
    assert read(replace(of, sealed=bare))[0] > 0.95


def test_a_key_that_is_not_orthogonal_defeats_them():
    of = unprotected()
    key = np.random.default_rng(1).standard_normal((64, 64))
    assert read(running(of, Veiled(plain().runs, key)))[0] < 0.2


def test_noise_defeats_them(tmp_path_factory):
    of = encrypted(tmp_path_factory.getbasetemp(), "haar")
    assert read(running(of, Veiled(of.sealed.model.runs, noise=1.0)))[0] < 0.2


def test_an_unrelated_model_reads_by_chance_only(tmp_path_factory):
    of = encrypted(tmp_path_factory.getbasetemp(), "haar")
    assert read(believing(of, random_model()))[0] < 0.1


def test_candidates_in_blocks_find_the_same(tmp_path_factory, monkeypatch):
    of = encrypted(tmp_path_factory.getbasetemp(), "haar")
    monkeypatch.setattr(state_matching, "_AT_ONCE", 50)
    assert read(of)[0] > 0.95


def read(of, depth=1):
    have = of.holdings(Level.BASE)
    reading = ATTACK.run(have) if depth == 1 else run(have, depth)
    assert isinstance(reading, Reading)
    tokens = score(reading, of, have).tokens
    return tokens.share, reading
