"""Subjects made from encrypted folders: the truth, the levels, and how the model is protected."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from veilrun import keys
from veilrun.attacks import building
from veilrun.attacks.building import build
from veilrun.attacks.levels import Level
from veilrun.attacks.methods import inner_maps
from veilrun.attacks.metrics import score
from veilrun.attacks.texts import gather_texts
from veilrun.equivariant.client import kits_folder
from veilrun.equivariant.compile import encrypt
from veilrun.equivariant.covariant import Noise
from veilrun.errors import CheckpointError, KeyFileError
from veilrun.keys import MasterKey

KEY = MasterKey(bytes(range(32)))


@pytest.fixture(autouse=True)
def few_texts(monkeypatch):
    monkeypatch.setattr(
        building, "gather_texts", functools.partial(gather_texts, n_texts=4, length=16)
    )


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    keys.save_key(KEY, tmp_path / "my.key", "words", scrypt_log2_n=10)
    return tmp_path / "my.key"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def tuned(stories: Path, folder: Path) -> Path:
    """stories260K with every weight a little off."""
    shutil.copytree(stories, folder)
    tensors = load_file(folder / "model.safetensors")
    torch.manual_seed(0)
    moved = {name: one + 0.02 * one.std() * torch.randn_like(one) for name, one in tensors.items()}
    save_file(moved, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_the_model_itself(stories: Path, key_file: Path, out: Path):
    encrypt(stories, out, KEY, kits=kits_folder(key_file), strength="haar")
    made = build(out, key_file, KEY, stories)
    assert made.name == "stories260K" and made.mode == "ee, residual key haar"
    assert not made.fine_tuned and made.levels == set(Level) - {Level.FINE_TUNE}
    assert {0, 1, 2} <= made.special
    assert len(made.secret) == 4 and set(made.corpora) == {"foreign", "domain", "same"}
    assert made.words(made.secret[0].tolist()).startswith("Once upon a")
    ours, theirs = made.sealed.model.weights, made.base.weights
    lengths = np.linalg.norm(theirs.embedding, axis=1)[made.sealed.order]
    np.testing.assert_allclose(np.linalg.norm(ours.embedding, axis=1), lengths, rtol=1e-4)
    (second,) = made.copies
    assert not np.array_equal(second.order, made.sealed.order)
    lengths = np.linalg.norm(theirs.embedding, axis=1)[second.order]
    moved = second.model.weights.embedding
    np.testing.assert_allclose(np.linalg.norm(moved, axis=1), lengths, rtol=1e-4)
    assert not np.allclose(
        moved[np.argsort(second.order)], ours.embedding[np.argsort(made.sealed.order)]
    )
    again = build(out, key_file, KEY, stories)  # an audit can be resumed
    assert np.array_equal(again.copies[0].order, second.order)
    assert all(map(np.array_equal, again.secret, made.secret))


@pytest.mark.parametrize("strength", ["structured", "haar", "permutation"])
def test_a_fine_tune_of_a_public_base(
    stories: Path, key_file: Path, out: Path, tmp_path: Path, strength
):
    private = tuned(stories, tmp_path / "private")
    encrypt(private, out, KEY, kits=kits_folder(key_file), strength=strength)
    made = build(out, key_file, KEY, stories)
    assert made.fine_tuned and not made.copies
    assert made.levels == {Level.WIRE, Level.HOST, Level.FINE_TUNE}
    assert made.mode == f"ee, residual key {strength}"


def test_a_noisy_copy(stories: Path, key_file: Path, out: Path):
    noise = Noise.of(0.5, 16)
    encrypt(stories, out, KEY, kits=kits_folder(key_file), noise=noise)
    made = build(out, key_file, KEY, stories)
    assert made.mode.startswith("ee, noise 0.5 on the embedding and 0.1 on the head")
    (second,) = made.copies
    assert second.model.weights.hidden == made.sealed.model.weights.hidden > 64
    assert not made.fine_tuned


def test_a_node_without_ends_has_the_rows_that_it_saw(stories: Path, key_file: Path, out: Path):
    encrypt(stories, out, KEY, kits=kits_folder(key_file), ends="client")
    made = build(out, key_file, KEY, stories)
    assert made.mode.endswith("embedding and head stay with the client")
    model, seen = made.sealed.model, np.unique(np.concatenate(made.secret))
    assert model.weights.head is None and not made.copies
    filled = np.abs(model.weights.embedding).sum(1) > 0
    assert set(made.sealed.order[filled]) == set(seen) and len(seen) < made.vocab_size
    have = made.holdings(Level.BASE)
    (state,) = have.running[0].states(have.traffic[:1], 0)
    np.testing.assert_allclose(state, model.weights.embedding[have.traffic[0]], rtol=1e-5)
    with pytest.raises(LookupError, match="no head"):
        have.running[0].logits(have.traffic[:1])
    tokens = score(inner_maps.run(have), made, have).tokens
    assert tokens is not None and tokens.share > 0.99  # the layers alone give the key away


def test_what_cannot_be_audited_is_named(stories: Path, key_file: Path, out: Path):
    encrypt(stories, out, KEY, kits=kits_folder(key_file))
    other = MasterKey(bytes(32))
    with pytest.raises(KeyFileError, match="does not belong"):
        build(out, key_file, other, stories)
    with pytest.raises(CheckpointError, match="not an encrypted checkpoint"):
        build(stories, key_file, KEY, stories)
    weights = bytearray((out / "model.safetensors").read_bytes())
    weights[-3] ^= 1
    (out / "model.safetensors").write_bytes(weights)
    with pytest.raises(CheckpointError, match="not those that its manifest names"):
        build(out, key_file, KEY, stories)
