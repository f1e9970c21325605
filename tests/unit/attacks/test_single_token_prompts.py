"""Answers to single tokens break real encrypted checkpoints of every strength, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from red_team_folders import Veiled, believing, encrypted, random_model, running
from red_team_rig import recovered

from veilrun.attacks.holdings import NOBODY, Substitution
from veilrun.attacks.levels import Level
from veilrun.attacks.methods import single_token_prompts
from veilrun.attacks.methods.single_token_prompts import ATTACK
from veilrun.attacks.metrics import score


@pytest.mark.parametrize("strength", ["permutation", "structured", "haar"])
def test_answers_read_every_exact_key(tmp_path_factory, strength):
    of = encrypted(tmp_path_factory.getbasetemp(), strength)
    assert recovered(ATTACK, of) == 1.0
    assert ATTACK.run(of.holdings(Level.BASE)).notes["moved"] == 0.0, "anchors had to help"


def test_a_large_vocabulary_is_read_where_traffic_has_it(tmp_path_factory, monkeypatch):
    of = encrypted(tmp_path_factory.getbasetemp(), "structured")
    monkeypatch.setattr(single_token_prompts, "ALL_IDS", 100)
    have = of.holdings(Level.BASE)
    finding = ATTACK.run(have)
    assert isinstance(finding, Substitution)
    used = np.unique(np.concatenate(have.traffic))
    assert finding.notes["asked"] == len(used) < of.vocab_size
    assert (finding.candidates[used, 0] == of.sealed.order[used]).all()
    assert (np.delete(finding.candidates, used, axis=0) == NOBODY).all()


def test_anchors_read_through_noise_that_the_first_match_does_not(tmp_path_factory, monkeypatch):
    """Scored on texts: under any noise, tokens that were never trained answer alike."""
    of = noisy(encrypted(tmp_path_factory.getbasetemp(), "structured"), 0.2)
    assert in_texts(of) > 0.95
    monkeypatch.setattr(single_token_prompts, "ROUNDS", 0)
    assert in_texts(of) < 0.5


def test_noise_above_the_logits_defeats_them(tmp_path_factory):
    of = encrypted(tmp_path_factory.getbasetemp(), "structured")
    assert in_texts(noisy(of, 1.0)) < 0.1


def test_an_unrelated_model_matches_by_chance_only(tmp_path_factory):
    of = encrypted(tmp_path_factory.getbasetemp(), "structured")
    assert recovered(ATTACK, believing(of, random_model())) < 0.02


def noisy(of, amount):
    return running(of, Veiled(of.sealed.model.runs, noise=amount))


def in_texts(of):
    have = of.holdings(Level.BASE)
    tokens = score(ATTACK.run(have), of, have).tokens
    assert tokens is not None
    return tokens.share
