"""Subjects of traffic for the red team's tests: real text under a secret permutation of ids."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from red_team_rig import KEY, STORIES

from veilrun.attacks.attack import Attack
from veilrun.attacks.holdings import Model, Substitution
from veilrun.attacks.levels import Level
from veilrun.attacks.metrics import Score, score
from veilrun.attacks.runs import Engine
from veilrun.attacks.subject import Copy, Subject
from veilrun.attacks.weights import Ids, Weights
from veilrun.equivariant.families.table import Shape

SHAKESPEARE = Path(__file__).parents[2] / "shared" / "data" / "tinyshakespeare" / "input.txt"


@functools.cache
def engine() -> Engine:
    """stories260K, running."""
    if not STORIES.exists():
        pytest.skip("../shared/models/stories260K is absent")
    return Engine(STORIES)


@functools.cache
def stories(temperature: float, seed: int, n_texts: int = 100) -> tuple[Ids, ...]:
    """What stories260K writes: 128 tokens a text, of a vocabulary of 512."""
    return tuple(engine().sample(n_texts, 128, temperature=temperature, seed=seed))


@functools.cache
def letters() -> Ids:
    """Shakespeare, a letter a token; 65 different ones."""
    if not SHAKESPEARE.exists():
        pytest.skip("../shared/data/tinyshakespeare is absent")
    text = np.frombuffer(SHAKESPEARE.read_bytes(), np.uint8)
    return np.unique(text, return_inverse=True)[1].astype(np.int64)


def in_pieces(text: Ids, length: int = 128) -> tuple[Ids, ...]:
    """One long text as many."""
    return tuple(text[start : start + length] for start in range(0, len(text), length))


def dice(n_texts: int, vocab_size: int, seed: int) -> tuple[Ids, ...]:
    """Traffic that says nothing: every id as often as any other, in no order."""
    return tuple(np.random.default_rng(seed).integers(vocab_size, size=(n_texts, 128)))


def traffic(
    secret: Sequence[Ids],
    corpora: Mapping[str, Sequence[Ids]],
    vocab_size: int,
    special: frozenset[int] = frozenset(),
) -> Subject:
    """A subject of text alone; its model is a table of zeros."""
    order = KEY.stream("red-team", "traffic").permutation(vocab_size)
    nothing = Weights(np.zeros((vocab_size, 1)), None, (), Shape(0, 1, 1, 1, 1, 1, vocab_size))
    return Subject(
        name="traffic",
        mode="test",
        sealed=Copy(Model(nothing), order),
        base=Model(nothing),
        words=lambda ids: " ".join(map(str, ids)),
        secret=secret,
        corpora=corpora,
        special=special,
    )


def read_right(attack: Attack, of: Subject, level: Level = Level.WIRE) -> Score:
    """What `attack` recovers of the texts."""
    have = of.holdings(level)
    finding = attack.run(have)
    assert isinstance(finding, Substitution)
    return score(finding, of, have)


def share(result: Score) -> float:
    """Of the texts' tokens, by first guess."""
    assert result.tokens is not None
    return result.tokens.share
