"""Ends at the client: the node's folder has neither embedding nor head, and both halves agree."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel

from veilrun.checkpoint.folder import Checkpoint
from veilrun.checkpoint.merkle import weights_root
from veilrun.checkpoint.tables import read_tables
from veilrun.equivariant import agreement
from veilrun.equivariant import compile as compiler
from veilrun.equivariant.client import ClientKit, open_kit
from veilrun.equivariant.covariant import Noise
from veilrun.errors import CheckpointError, UnsupportedModel
from veilrun.keys import MasterKey
from veilrun.serve.ends import Ends, load_ends
from veilrun.wire.manifest import MANIFEST_FILE, decode_manifest

KEY = MasterKey(bytes(range(32)))
IDS = tuple(range(20))


def run(plain: Path, work: Path, **options: Any) -> tuple[compiler.Encryption, ClientKit]:
    made = compiler.encrypt(plain, work / "out", KEY, kits=work / "kits", ends="client", **options)
    return made, open_kit(made.client, KEY, made.fingerprint)


def ends_of(kit: ClientKit) -> Ends:
    assert kit.ends_file is not None
    return load_ends(kit.ends_file, kit.codec)


def joined_logits(folder: Path, ends: Ends) -> Any:
    middle = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        rows = torch.from_numpy(ends.rows(IDS))[None]
        states = middle(inputs_embeds=rows).last_hidden_state[0].numpy()
    return np.stack([ends.scores(one) for one in states])


@pytest.mark.parametrize(
    "name",
    [
        "llama", "llama-tied-biases-mha", "mistral-sliding", "qwen2-tied-sliding", "qwen3-tied",
        "phi3-partial-rotary", "mixtral", "qwen3_moe",
    ],
)  # fmt: skip
@pytest.mark.parametrize("strength", [None, "haar", "permutation"])
def test_the_halves_say_what_the_whole_says(name: str, strength: Any, tmp_path: Path):
    plain = models.save_random(name, tmp_path / "plain")
    made, kit = run(plain, tmp_path, strength=strength)
    with torch.no_grad():
        expected = models.load(plain)(torch.tensor([IDS])).logits[0].numpy()
    actual = joined_logits(made.folder, ends_of(kit))
    assert np.abs(actual - expected).max() < 2e-4 * np.abs(expected).max()


def test_the_node_gets_no_end_and_nothing_that_only_ends_need(tmp_path: Path):
    plain = models.save_random("llama-tied-biases-mha", tmp_path / "plain")
    made, kit = run(plain, tmp_path)
    tensors = load_file(made.folder / "model.safetensors")
    assert not [name for name in tensors if "embed" in name or "head" in name]
    assert not [one.shape for one in tensors.values() if models.VOCAB in one.shape]
    assert torch.all(tensors["model.norm.weight"] == 1.0), "its gain is in the client's head"
    config = json.loads((made.folder / "config.json").read_text())
    assert config["vocab_size"] == 1
    assert not [name for name, value in config.items() if name.endswith("_token_id") and value]
    assert {one.name for one in made.folder.iterdir()} == {
        "config.json", "model.safetensors", MANIFEST_FILE
    }  # fmt: skip
    manifest = decode_manifest((made.folder / MANIFEST_FILE).read_bytes())
    assert (manifest.ends, manifest.vocab_size) == ("client", models.VOCAB)
    with Checkpoint(made.folder) as sealed:
        assert weights_root(sealed).hex() == manifest.weights_root
    assert kit.ends_file is not None
    assert stat.S_IMODE(kit.ends_file.stat().st_mode) == 0o600


def test_the_kit_holds_no_plain_row(tmp_path: Path):
    plain = models.save_random("llama", tmp_path / "plain")
    _, kit = run(plain, tmp_path)
    assert kit.ends_file is not None
    table = load_file(plain / "model.safetensors")["model.embed_tokens.weight"].numpy()
    sealed = read_tables(kit.ends_file)["embedding.weight"]
    ordered = sealed[list(kit.codec.encode(range(models.VOCAB)))]
    assert np.allclose(np.linalg.norm(ordered, axis=1), np.linalg.norm(table, axis=1), atol=1e-4)
    assert not np.allclose(ordered, table, atol=0.1), "the stream has a key"
    assert not np.allclose(sealed @ sealed.T, table @ table.T, atol=0.1), "and ids another"


def test_shards_without_ends_stay_consistent(tmp_path: Path):
    plain = models.save_random("llama", tmp_path / "plain", max_shard_size="30KB")
    made, kit = run(plain, tmp_path)
    index = json.loads((made.folder / "model.safetensors.index.json").read_text())
    with Checkpoint(made.folder) as sealed:  # it holds the index against the shards
        assert index["metadata"]["total_size"] == sealed.n_bytes
    with torch.no_grad():
        expected = models.load(plain)(torch.tensor([IDS])).logits[0].numpy()
    actual = joined_logits(made.folder, ends_of(kit))
    assert np.abs(actual - expected).max() < 2e-4 * np.abs(expected).max()


def test_a_whole_copy_under_the_same_key_has_other_secrets(tmp_path: Path):
    plain = models.save_random("llama", tmp_path / "plain")
    whole = compiler.encrypt(plain, tmp_path / "whole", KEY, kits=tmp_path / "kits")
    made, kit = run(plain, tmp_path)
    other = open_kit(whole.client, KEY, whole.fingerprint)
    assert made.fingerprint != whole.fingerprint
    assert other.ends_file is None
    assert kit.codec.encode(IDS) != other.codec.encode(IDS)
    name = "model.layers.0.mlp.gate_proj.weight"
    assert not torch.equal(
        load_file(made.folder / "model.safetensors")[name],
        load_file(whole.folder / "model.safetensors")[name],
    )


def test_noise_and_ends_together(tmp_path: Path):
    plain = models.save_random("llama", tmp_path / "plain")
    made, kit = run(plain, tmp_path, noise=Noise(0.0, 0.0, 8))
    assert ends_of(kit).hidden == 64
    assert joined_logits(made.folder, ends_of(kit)).shape == (len(IDS), models.VOCAB)
    assert (made.strength, made.ends) == ("covariant", "client")


@pytest.mark.parametrize("name", ["gemma2", "gemma3", "gpt2", "gpt_neox"])
def test_other_families_are_refused(name: str, tmp_path: Path):
    plain = models.save_random(name, tmp_path / "plain")
    with pytest.raises(UnsupportedModel, match="ends at the client"):
        run(plain, tmp_path)
    assert not (tmp_path / "out").exists() and not list(tmp_path.rglob(".*.part"))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_tables_of_half_precision_are_read_exactly(dtype: str, tmp_path: Path):
    plain = models.save_random("qwen2", tmp_path / "plain", dtype=getattr(torch, dtype))
    _, kit = run(plain, tmp_path)
    assert kit.ends_file is not None
    stored = load_file(kit.ends_file)
    for name, table in read_tables(kit.ends_file).items():
        assert table.dtype == np.float32
        assert np.array_equal(table, stored[name].float().numpy())


def test_damaged_tables_are_refused(tmp_path: Path):
    plain = models.save_random("llama", tmp_path / "plain")
    _, kit = run(plain, tmp_path)
    assert kit.ends_file is not None
    body = kit.ends_file.read_bytes()
    kit.ends_file.write_bytes(body[:-4])
    with pytest.raises(CheckpointError):
        ends_of(kit)
    kit.ends_file.write_bytes(body.replace(b"head.weight", b"tail.weight"))
    with pytest.raises(CheckpointError, match="not the two ends"):
        ends_of(kit)


def test_check_joins_the_halves(stories: Path, tmp_path: Path):
    made, kit = run(stories, tmp_path)
    windows = agreement.windows(stories, agreement.SAMPLE_TEXT, 128, 64)
    result = agreement.measure(
        stories, made.folder, kit.codec, windows, "float32", ends_file=kit.ends_file
    )
    assert result.top_token_share == 1.0
    assert result.kl_max < 1e-5
    with pytest.raises(CheckpointError, match=r"lacks 2 weights.* client kit"):
        agreement.measure(stories, made.folder, kit.codec, windows, "float32")
