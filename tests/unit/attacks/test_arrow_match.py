"""Directions read a real fine-tune whose hidden axis is untouched, and no other."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from red_team_rig import STORIES, minilm, recovered, sealed, stories, subject, unrelated

from veilrun.attacks.levels import Level
from veilrun.attacks.methods.arrow_match import ATTACK
from veilrun.attacks.subject import Subject
from veilrun.attacks.weights import Weights, read_weights

ROOT = Path(__file__).parents[3]
UNTRAINED = frozenset(range(3, 259))
"""stories260K's byte tokens: its text has none, so most of their rows are nearly one row."""


@pytest.fixture(scope="module")
def script() -> Iterator[Any]:
    """The fine-tuning script as a module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "training"))
        yield importlib.import_module("finetune_stories")


@pytest.fixture(scope="module")
def tuned(script: Any, tmp_path_factory: pytest.TempPathFactory, shared: Path) -> Path:
    """stories260K after forty steps on Shakespeare: a folder, with `report.json` beside it."""
    work = tmp_path_factory.mktemp("tuned")
    text = shared / "data" / "tinyshakespeare" / "input.txt"
    report = script.finetune(STORIES, work / "model", text, script.Recipe(steps=40))
    (work / "report.json").write_text(json.dumps(report))
    return work / "model"


def of_fine_tune(tuned: Path, rival: str, base: Weights | None = None) -> Subject:
    private = read_weights(tuned)
    of = subject(stories(), sealed(private, rival), base=base, fine_tuned=True)
    return replace(of, special=UNTRAINED)


def test_the_fine_tune_learns_and_repeats_itself(script, tuned, shared, tmp_path):
    report = json.loads((tuned.parent / "report.json").read_text())
    assert report["loss_after"] < report["loss_before"] - 1.0
    text = shared / "data" / "tinyshakespeare" / "input.txt"
    for name in ("a", "b"):
        script.finetune(STORIES, tmp_path / name, text, script.Recipe(steps=2))
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("a", "b"))
    assert one == two
    assert (tuned / "tokenizer.json").exists()


def test_directions_read_a_fine_tune_with_a_permuted_vocabulary(tuned):
    of = of_fine_tune(tuned, "vocabulary")
    assert recovered(ATTACK, of, Level.FINE_TUNE) > 0.99
    notes = ATTACK.run(of.holdings(Level.FINE_TUNE)).notes
    assert notes["cosine"] > 0.99 and notes["rows above 0.99"] > 0.95
    assert notes["cosine of units"] > 0.99 and notes["units above 0.99"] > 0.95


def test_they_read_every_token_of_an_untouched_hidden_axis():
    weights = replace(minilm(), embedding=minilm().embedding[:4000])
    assert recovered(ATTACK, subject(weights, sealed(weights, "vocabulary"))) > 0.999


def test_scales_and_signs_of_rows_do_not_matter():
    weights = stories()
    copy = sealed(weights, "vocabulary")
    factors = np.random.default_rng(0).choice([-4.0, -0.5, 0.25, 3.0], size=(512, 1))
    scaled = replace(copy.weights, embedding=copy.weights.embedding * factors)
    assert recovered(ATTACK, subject(weights, replace(copy, weights=scaled))) > 0.99


@pytest.mark.parametrize("rival", ["scaled", "permutation", "orthogonal", "invertible"])
def test_a_key_that_moves_columns_defeats_them(tuned, rival):
    of = of_fine_tune(tuned, rival)
    assert recovered(ATTACK, of, Level.FINE_TUNE) < 0.03
    assert ATTACK.run(of.holdings(Level.FINE_TUNE)).notes["rows above 0.99"] < 0.05


def test_unrelated_tables_match_by_chance_only(tuned):
    of = of_fine_tune(tuned, "vocabulary", base=unrelated(stories()))
    assert recovered(ATTACK, of, Level.FINE_TUNE) < 0.03
