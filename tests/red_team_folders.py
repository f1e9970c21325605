"""Subjects that run: stories260K, encrypted for real, and texts that it wrote itself."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import transformers
from red_team_rig import KEY, STORIES, stories
from tokenizers import Tokenizer

from veilrun.attacks.holdings import Model, Runs
from veilrun.attacks.runs import Engine
from veilrun.attacks.subject import Copy, Subject
from veilrun.attacks.weights import Ids, Table, read_weights
from veilrun.equivariant.client import open_kit
from veilrun.equivariant.compile import encrypt
from veilrun.equivariant.groups import Strength

LENGTH = 96
SPECIAL = frozenset({0, 1, 2})


@functools.cache
def plain() -> Model:
    """stories260K, to run."""
    return Model(stories(), Engine(STORIES))


@functools.cache
def encrypted(tmp: Path, strength: Strength) -> Subject:
    """stories260K as `veilrun encrypt` makes it. tmp: where; give the session's base folder."""
    stories()
    out = tmp / f"stories-{strength}"
    made = encrypt(STORIES, out, KEY, kits=tmp / "kits" / strength, strength=strength)
    codec = open_kit(made.client, KEY, made.fingerprint).codec
    order = np.array(codec.decode(range(codec.vocab_size)), np.int64)
    return _subject(strength, Copy(Model(read_weights(out), Engine(out)), order))


@functools.cache
def unprotected() -> Subject:
    """stories260K itself where the encrypted model should be: what every attack must read."""
    return _subject("none", Copy(plain(), np.arange(stories().vocab_size)))


@functools.cache
def random_model() -> Model:
    """A model of the same sizes that has nothing to do with stories260K."""
    config = transformers.LlamaConfig.from_pretrained(STORIES, initializer_range=0.1)
    with torch.random.fork_rng(), tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        transformers.LlamaForCausalLM(config).save_pretrained(folder)
        return Model(read_weights(Path(folder)), Engine(Path(folder)))


def believing(of: Subject, base: Model) -> Subject:
    """The same subject under an attacker who takes `base` for its base."""
    return replace(of, base=base)


def running(of: Subject, runs: Runs) -> Subject:
    """The same subject with another way to run the encrypted model."""
    return replace(of, sealed=replace(of.sealed, model=replace(of.sealed.model, runs=runs)))


@functools.cache
def _subject(mode: str, sealed: Copy) -> Subject:
    return Subject(
        name="stories260K",
        mode=mode,
        sealed=sealed,
        base=plain(),
        words=_words,
        secret=texts(16, 1),
        corpora={"same": texts(128, 2)},
        special=SPECIAL,
    )


@functools.cache
def texts(n: int, seed: int) -> tuple[Ids, ...]:
    """Texts of up to LENGTH tokens that stories260K wrote, as plain ids, begin token first."""
    runs = plain().runs
    assert isinstance(runs, Engine)
    return tuple(runs.sample(n, LENGTH, temperature=1.0, seed=seed))


class Veiled:
    """A model whose host sees states through a matrix, with noise: keys that no folder has yet.

    noise: in standard deviations of what is seen.
    """

    def __init__(self, runs: Runs, matrix: Table | None = None, noise: float = 0.0) -> None:
        self._runs, self._matrix, self._noise = runs, matrix, noise

    def logits(self, ids: Sequence[Ids]) -> list[np.ndarray]:
        return self._blurred(self._runs.logits(ids))

    def states(self, ids: Sequence[Ids], depth: int) -> list[np.ndarray]:
        seen = self._runs.states(ids, depth)
        if self._matrix is not None:
            seen = [one @ self._matrix for one in seen]
        return self._blurred(seen)

    def next_states(self, prefix: Ids, candidates: Ids, depth: int) -> np.ndarray:
        raise AssertionError("an attacker asks only the base for this")

    def _blurred(self, seen: list[np.ndarray]) -> list[np.ndarray]:
        if self._noise == 0.0:
            return seen
        random = np.random.default_rng(7)
        scale = self._noise * np.concatenate(seen).std()
        return [one + scale * random.standard_normal(one.shape) for one in seen]


@functools.cache
def _tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(STORIES / "tokenizer.json"))


def _words(ids: Sequence[int]) -> str:
    text: str = _tokenizer().decode(list(ids))
    return text
