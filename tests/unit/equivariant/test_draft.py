"""A draft guesses in its model's cipher ids, and shares nothing else with it or its own copy."""

from __future__ import annotations

from pathlib import Path

import models
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from veilrun.equivariant.client import open_kit
from veilrun.equivariant.compile import encrypt
from veilrun.errors import UsageError
from veilrun.keys import MasterKey
from veilrun.wire.manifest import MANIFEST_FILE, decode_manifest

KEY = MasterKey(bytes(range(32)))


@pytest.fixture
def made(tmp_path: Path):
    """An encrypted model, its kit, and the plain and the encrypted draft."""
    target = encrypt(
        models.save_random("llama", tmp_path / "plain"), tmp_path / "out", KEY, kits=tmp_path / "k"
    )
    kit = open_kit(target.client, KEY, target.fingerprint)
    plain = models.save_random("gpt2", tmp_path / "plain-draft")
    draft = encrypt(plain, tmp_path / "draft", KEY, kits=tmp_path / "k", draft_of=kit)
    return target, kit, plain, draft


def logits(folder: Path, ids: list[int]) -> np.ndarray:
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        return model(torch.tensor([ids])).logits[0].numpy()


def test_a_draft_reads_and_guesses_the_models_cipher_ids(made):
    _, kit, plain, draft = made
    ids = [5, 17, 80, 3, 44]
    wanted = logits(plain, ids)
    found = logits(draft.folder, list(kit.codec.encode(ids)))
    order = list(kit.codec.encode(range(kit.codec.vocab_size)))
    np.testing.assert_allclose(found[:, order], wanted, atol=1e-4)


def test_a_draft_names_its_model_and_has_no_kit(made, tmp_path: Path):
    target, _, _, draft = made
    manifest = decode_manifest((draft.folder / MANIFEST_FILE).read_bytes())
    assert manifest.fingerprint == draft.fingerprint == target.fingerprint
    assert draft.client == target.client
    assert [path.name for path in (tmp_path / "k").iterdir()] == [target.fingerprint]
    assert manifest.weights_root == draft.weights_root != target.weights_root


def test_a_draft_shares_no_other_secret_with_an_ordinary_copy(made, tmp_path: Path):
    _, _, plain, draft = made
    copy = encrypt(plain, tmp_path / "copy", KEY, kits=tmp_path / "k")
    one, other = (load_file(one.folder / "model.safetensors") for one in (draft, copy))
    name = next(name for name in one if "mlp" in name and one[name].ndim == 2)
    rows = {tuple(row) for row in one[name].numpy().round(4).tolist()}
    assert not rows & {tuple(row) for row in other[name].numpy().round(4).tolist()}


def test_what_cannot_be_a_draft_is_refused(made, tmp_path: Path):
    _, kit, plain, _ = made
    with pytest.raises(UsageError, match="ends cannot be"):
        encrypt(plain, tmp_path / "x", KEY, kits=tmp_path / "k", draft_of=kit, ends="client")
    import transformers

    config = transformers.GPT2Config(vocab_size=64, n_embd=48, n_layer=2, n_head=4, n_positions=64)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "other")
    with pytest.raises(UsageError, match="vocabulary of 96 ids; this one has 64"):
        encrypt(tmp_path / "other", tmp_path / "x", KEY, kits=tmp_path / "k", draft_of=kit)
    assert not (tmp_path / "x").exists()
