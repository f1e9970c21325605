"""A trained decoder reads states without a key, and under keys that only turn them."""

from __future__ import annotations

import numpy as np
import pytest
from red_team_folders import Veiled, believing, encrypted, plain, random_model, running, unprotected

from veilrun.attacks.holdings import Reading
from veilrun.attacks.levels import Level
from veilrun.attacks.methods.inversion_decoder import ATTACK
from veilrun.attacks.metrics import score


def test_a_decoder_reads_states_without_a_key():
    share, notes = read(unprotected())
    assert share > 0.95
    assert notes["own text"] > 0.95


@pytest.mark.parametrize("strength", ["permutation", "haar"])
def test_a_decoder_reads_states_that_a_key_turned(tmp_path_factory, strength):
    assert read(encrypted(tmp_path_factory.getbasetemp(), strength))[0] > 0.9


def test_a_key_that_is_not_orthogonal_defeats_it():
    key = np.random.default_rng(1).standard_normal((64, 64))
    assert read(running(unprotected(), Veiled(plain().runs, key)))[0] < 0.2


def test_an_unrelated_model_reads_by_chance_only(tmp_path_factory):
    of = encrypted(tmp_path_factory.getbasetemp(), "haar")
    assert read(believing(of, random_model()))[0] < 0.1


def read(of):
    have = of.holdings(Level.BASE)
    reading = ATTACK.run(have)
    assert isinstance(reading, Reading)
    tokens = score(reading, of, have).tokens
    return tokens.share, reading.notes
