"""Lineage: yes for copies under every key and for a fine-tune, no for what is not kin."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from red_team_rig import KEY, STORIES, sealed, stories, subject, unrelated

from veilrun.attacks.levels import Level
from veilrun.attacks.methods.lineage import ATTACK
from veilrun.attacks.rivals import Noise, covariant_copy
from veilrun.attacks.weights import LayerTables, read_weights
from veilrun.bundled import prompter

TRAINING = Path(__file__).parents[3] / "training"


@pytest.fixture(scope="module")
def tuned(shared, tmp_path_factory):
    """stories260K after forty steps on Shakespeare."""
    spec = importlib.util.spec_from_file_location("tuning", TRAINING / "finetune_stories.py")
    script = importlib.util.module_from_spec(spec)
    sys.modules["tuning"] = script
    spec.loader.exec_module(script)
    stories()
    out = tmp_path_factory.mktemp("tuned") / "model"
    text = shared / "data" / "tinyshakespeare" / "input.txt"
    script.finetune(STORIES, out, text, script.Recipe(steps=40))
    yield read_weights(out)
    del sys.modules["tuning"]


def bundled():
    return read_weights(prompter())


def ratio(of, level=Level.BASE):
    finding = ATTACK.run(of.holdings(level))
    return finding.similarity / finding.threshold


@pytest.mark.parametrize("tables", [stories, bundled], ids=["stories260K", "prompter"])
@pytest.mark.parametrize("rival", ["vocabulary", "permutation", "orthogonal", "invertible"])
def test_copies_under_every_key_are_kin(tables, rival):
    weights = tables()
    assert ratio(subject(weights, sealed(weights, rival))) > 3


@pytest.mark.parametrize("amount", [1.0, 16.0])
def test_noise_on_the_vocabulary_hides_no_lineage(amount):
    weights = stories()
    copy = covariant_copy(weights, KEY.stream("kin"), Noise(amount, amount))
    assert ratio(subject(weights, copy)) > 3


@pytest.mark.parametrize("seed", [0, 1])
def test_random_tables_are_not(seed):
    weights = stories()
    base = unrelated(weights, seed)
    assert ratio(subject(weights, sealed(weights, "invertible"), base=base)) < 0.7


def test_another_real_model_is_not():
    assert ratio(subject(stories(), sealed(stories(), "orthogonal"), base=bundled())) < 0.7
    assert ratio(subject(bundled(), sealed(bundled(), "orthogonal"), base=stories())) < 0.7


def test_a_real_fine_tune_is_kin_under_an_exact_key_and_under_noise(tuned):
    exact = sealed(tuned, "invertible")
    noisy = covariant_copy(tuned, KEY.stream("kin", "tuned"), Noise())
    for copy, least in ((exact, 2), (noisy, 1.2)):
        of = subject(tuned, copy, base=stories(), fine_tuned=True)
        assert ratio(of, Level.FINE_TUNE) > least


@pytest.mark.parametrize("rival", ["orthogonal", "invertible"])
def test_a_model_that_moved_away_as_a_fine_tune_does_is_kin(rival):
    """A tenth of each table's own spread: more than a fine-tune of some hundred steps."""
    weights = stories()
    tuned = moved(weights, 0.1)
    of = subject(tuned, sealed(tuned, rival), base=weights, fine_tuned=True)
    assert ratio(of, Level.FINE_TUNE) > 1


def moved(weights, amount):
    random = np.random.default_rng(4)

    def step(rows):
        return rows + amount * rows.std() * random.standard_normal(rows.shape)

    layers = tuple(
        LayerTables(
            {axis: step(rows) for axis, rows in one.readers.items()},
            {axis: step(rows) for axis, rows in one.writers.items()},
        )
        for one in weights.layers
    )
    return replace(
        weights, embedding=step(weights.embedding), head=step(weights.head), layers=layers
    )
