"""The compiler's promises: whole or nothing, named refusals, deterministic, loads anywhere."""

from __future__ import annotations

import errno
import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import models
import pytest
import torch
from safetensors.torch import load_file, save_file

from veilrun.checkpoint.folder import Checkpoint
from veilrun.checkpoint.merkle import weights_root
from veilrun.equivariant import compile as compiler
from veilrun.equivariant.client import find_client_kit, kits_folder, open_kit
from veilrun.errors import (
    CheckpointError,
    KeyFileError,
    RefusedError,
    StorageError,
    UnsupportedModel,
    UsageError,
    VeilrunError,
)
from veilrun.keys import MasterKey
from veilrun.wire.manifest import MANIFEST_FILE, decode_manifest

KEY = MasterKey(bytes(range(32)))


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    return models.save_random("llama-tied-biases-mha", tmp_path / "plain")


def run(plain: Path, work: Path, key: MasterKey = KEY, **options: Any) -> compiler.Encryption:
    return compiler.encrypt(plain, work / "out", key, kits=work / "kits", **options)


def assert_nothing_left(work: Path) -> None:
    assert not (work / "out").exists()
    assert not list(work.glob(".*.part"))


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# --- promises ---------------------------------------------------------------------------


def test_same_key_and_model_give_the_same_bytes(plain: Path, tmp_path: Path, monkeypatch: Any):
    first = content(run(plain, tmp_path / "1").folder)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0})
    assert content(run(plain, tmp_path / "2").folder) == first
    other = content(run(plain, tmp_path / "3", MasterKey(bytes(32))).folder)
    assert other["model.safetensors"] != first["model.safetensors"]


def test_shards_stay_shards(plain: Path, tmp_path: Path):
    sharded = models.save_random("llama", tmp_path / "sharded", max_shard_size="30KB")
    assert len(list(sharded.glob("*.safetensors"))) > 2
    made = run(sharded, tmp_path)
    assert {p.name for p in made.folder.glob("*.safetensors*")} == {
        p.name for p in sharded.glob("*.safetensors*")
    }
    single = models.save_random("llama", tmp_path / "single")
    with Checkpoint(sharded) as a, Checkpoint(single) as b:
        assert weights_root(a) == weights_root(b)
    whole = compiler.encrypt(single, tmp_path / "whole", KEY, kits=tmp_path / "kits")
    assert made.fingerprint == whole.fingerprint
    assert made.weights_root == whole.weights_root
    assert models.load(made.folder).config.vocab_size == models.VOCAB


def test_loads_where_veilrun_is_not(plain: Path, tmp_path: Path):
    made = run(plain, tmp_path)
    program = (
        "import sys; sys.modules['veilrun'] = None\n"
        "from transformers import AutoModelForCausalLM\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1])\n"
        "print(type(model).__module__, sum(p.numel() for p in model.parameters()))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, str(made.folder)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("transformers.models.llama")


def test_the_folder_for_the_node_names_nothing(plain: Path, tmp_path: Path):
    config = json.loads((plain / "config.json").read_text())
    config |= {"_name_or_path": "secret-base", "auto_map": {"AutoModel": "evil.Model"}}
    config |= {"task_specific_params": {"x": {"prefix": "secret-base"}}, "made_by": "secret-base"}
    (plain / "config.json").write_text(json.dumps(config))
    generation = {"stop_strings": ["secret-base"], "forced_decoder_ids": [[1, 61]], "top_k": 7}
    (plain / "generation_config.json").write_text(json.dumps({"eos_token_id": 2, **generation}))
    (plain / "tokenizer.json").write_text("{}")
    made = run(plain, tmp_path)
    names = {path.name for path in made.folder.iterdir()}
    assert names == {
        "config.json", "generation_config.json", "model.safetensors", MANIFEST_FILE
    }  # fmt: skip
    everything = b"".join(content(made.folder).values())
    with Checkpoint(plain) as checkpoint:
        digest = weights_root(checkpoint).hex()
    for secret in (b"secret-base", b"evil", digest.encode(), bytes(range(32)), plain.name.encode()):
        assert secret not in everything
    assert json.loads(content(made.folder)["generation_config.json"]).keys() == {
        "eos_token_id", "top_k"
    }  # fmt: skip
    assert (made.client / "tokenizer.json").exists()


def test_old_spellings_are_kept_and_unknown_needs_are_refused(plain: Path, tmp_path: Path):
    config = json.loads((plain / "config.json").read_text())
    del config["rope_parameters"]
    scaling = {"rope_type": "linear", "factor": 4.0}
    old = {**config, "rope_theta": 500.0, "rope_scaling": scaling, "torch_dtype": "float32"}
    (plain / "config.json").write_text(json.dumps(old))
    made = run(plain, tmp_path)
    rope = models.load(made.folder).config.rope_parameters
    assert rope["rope_theta"] == 500.0 and rope["factor"] == 4.0


def test_the_kit_follows_a_changed_tokenizer(plain: Path, tmp_path: Path):
    (plain / "chat_template.jinja").write_text("old")
    first = run(plain, tmp_path / "1")
    (plain / "chat_template.jinja").write_text("new")
    second = compiler.encrypt(plain, tmp_path / "2", KEY, kits=tmp_path / "1" / "kits")
    assert second.client == first.client
    assert (second.client / "chat_template.jinja").read_text() == "new"
    assert len(list((tmp_path / "1" / "kits").iterdir())) == 1


@pytest.mark.parametrize("same", [True, False])
def test_a_stored_head_beside_a_tied_config(plain: Path, tmp_path: Path, same: bool):
    """Engines tie two stored tensors only when they are equal."""
    tensors = load_file(plain / "model.safetensors")
    head = tensors["model.embed_tokens.weight"].clone()
    tensors["lm_head.weight"] = head if same else head.flip(0)
    save_file(tensors, plain / "model.safetensors", {"format": "pt"})
    made = run(plain, tmp_path)
    codec = open_kit(made.client, KEY, made.fingerprint).codec
    with torch.no_grad():
        expected = models.load(plain)(torch.arange(24)[None]).logits
        actual = models.load(made.folder)(torch.tensor([codec.encode(range(24))])).logits
    assert torch.allclose(actual[..., list(codec.encode(range(models.VOCAB)))], expected, atol=1e-3)


def test_a_missing_expert_is_named(tmp_path: Path):
    moe = models.save_random("mixtral", tmp_path / "moe")
    tensors = load_file(moe / "model.safetensors")
    gone = "model.layers.1.block_sparse_moe.experts.2.w3.weight"
    del tensors[gone]
    save_file(tensors, moe / "model.safetensors")
    with pytest.raises(CheckpointError, match=gone.replace(".", r"\.")):
        run(moe, tmp_path)


def test_every_id_in_the_configs_follows(plain: Path, tmp_path: Path):
    generation = json.loads((plain / "generation_config.json").read_text())
    generation |= {"eos_token_id": [2, 7, -1], "suppress_tokens": [5], "pad_token_id": -1}
    (plain / "generation_config.json").write_text(json.dumps(generation))
    made = run(plain, tmp_path)
    kit = open_kit(made.client, KEY, made.fingerprint)
    config = json.loads((made.folder / "config.json").read_text())
    encrypted = json.loads((made.folder / "generation_config.json").read_text())
    assert config["eos_token_id"] == kit.codec.encode_one(2)
    assert config["bos_token_id"] == kit.codec.encode_one(1)
    assert encrypted["eos_token_id"] == [*kit.codec.encode([2, 7]), -1]
    assert encrypted["suppress_tokens"] == [kit.codec.encode_one(5)]
    assert encrypted["pad_token_id"] == -1
    assert kit.eos_token_ids == (2, 7)
    assert config["tie_word_embeddings"] is False


def test_tied_stays_tied_where_the_last_gain_is_one_number(plain: Path, tmp_path: Path):
    tensors = load_file(plain / "model.safetensors")
    tensors["model.norm.weight"].fill_(1.5)
    save_file(tensors, plain / "model.safetensors", {"format": "pt"})
    made = run(plain, tmp_path)
    assert not made.untied
    ids = torch.arange(24)[None]
    codec = open_kit(made.client, KEY, made.fingerprint).codec
    with torch.no_grad():
        expected = models.load(plain)(ids).logits
        actual = models.load(made.folder)(torch.tensor([codec.encode(range(24))])).logits
    assert torch.allclose(actual[..., list(codec.encode(range(models.VOCAB)))], expected, atol=1e-4)


def test_manifest_and_kit_recognise_each_other(plain: Path, tmp_path: Path):
    key_file = tmp_path / "my.key"
    made = compiler.encrypt(plain, tmp_path / "out", KEY, kits=kits_folder(key_file))
    manifest = decode_manifest((made.folder / MANIFEST_FILE).read_bytes())
    assert find_client_kit(key_file, KEY, manifest.fingerprint).codec.vocab_size == models.VOCAB
    with Checkpoint(made.folder) as encrypted:
        assert weights_root(encrypted).hex() == manifest.weights_root
    with pytest.raises(KeyFileError, match="does not belong"):
        find_client_kit(key_file, MasterKey(bytes(32)), manifest.fingerprint)
    with pytest.raises(KeyFileError, match="was not made with"):
        find_client_kit(key_file, KEY, "0" * 32)
    (made.client / "client.json").write_text("{}")
    with pytest.raises(KeyFileError, match="damaged"):
        find_client_kit(key_file, KEY, manifest.fingerprint)


# --- bad input ----------------------------------------------------------------------------


def test_unknown_architecture(plain: Path, tmp_path: Path):
    config = json.loads((plain / "config.json").read_text())
    (plain / "config.json").write_text(json.dumps({**config, "model_type": "mamba"}))
    with pytest.raises(UnsupportedModel, match=r"mamba.*known: .*llama"):
        run(plain, tmp_path)
    assert_nothing_left(tmp_path)


def test_all_unknown_parameters_are_named(plain: Path, tmp_path: Path):
    tensors = load_file(plain / "model.safetensors")
    extra = ["model.layers.0.adapter.weight", "model.layers.7.mlp.up_proj.weight", "spy.bias"]
    tensors |= {name: torch.zeros(2, 2) for name in extra}
    tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.int8)
    save_file(tensors, plain / "model.safetensors")
    with pytest.raises(UnsupportedModel) as caught:
        run(plain, tmp_path)
    for name in [*extra, "model.norm.weight (dtype I8)"]:
        assert name in str(caught.value)
    assert_nothing_left(tmp_path)


def test_missing_parameters_and_wrong_shapes_are_named(plain: Path, tmp_path: Path):
    tensors = load_file(plain / "model.safetensors")
    without = {k: v for k, v in tensors.items() if "layers.1.mlp.down_proj" not in k}
    save_file(without, plain / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"lacks model\.layers\.1\.mlp\.down_proj\.weight"):
        run(plain, tmp_path)
    tensors["model.embed_tokens.weight"] = torch.zeros(models.VOCAB - 1, 48)
    save_file(tensors, plain / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"embed_tokens\.weight is 95 x 48, not 96 x 48"):
        run(plain, tmp_path)
    assert_nothing_left(tmp_path)


def test_quantised_weights_are_refused(plain: Path, tmp_path: Path):
    config = json.loads((plain / "config.json").read_text())
    (plain / "config.json").write_text(json.dumps({**config, "quantization_config": {}}))
    with pytest.raises(UnsupportedModel, match="quantised"):
        run(plain, tmp_path)


def test_pickles_are_refused(plain: Path, tmp_path: Path):
    (plain / "model.safetensors").unlink()
    (plain / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(RefusedError, match=r"pickles \(pytorch_model\.bin\)"):
        run(plain, tmp_path)
    assert_nothing_left(tmp_path)


def test_truncated_at_any_length(plain: Path, tmp_path: Path):
    body = (plain / "model.safetensors").read_bytes()
    for length in [0, 1, 7, 8, 9, 100, len(body) // 2, len(body) - 1]:
        (plain / "model.safetensors").write_bytes(body[:length])
        with pytest.raises(CheckpointError):
            run(plain, tmp_path)
    (plain / "model.safetensors").write_bytes(body + b"x")
    with pytest.raises(CheckpointError, match="promises"):
        run(plain, tmp_path)
    assert_nothing_left(tmp_path)


def test_damaged_headers_are_checkpoint_errors(plain: Path, tmp_path: Path):
    """Any byte of the header changed: encrypts the same tensors, or is refused; never a crash."""
    path = plain / "model.safetensors"
    body = bytearray(path.read_bytes())
    (length,) = struct.unpack("<Q", body[:8])
    for position in range(0, min(length + 8, 1600), 3):
        damaged = bytearray(body)
        damaged[position] ^= 0x11
        path.write_bytes(bytes(damaged))
        try:
            with Checkpoint(plain) as checkpoint:
                assert checkpoint.n_bytes == len(body) - 8 - length
        except VeilrunError as error:
            assert isinstance(error, CheckpointError)


def test_index_that_contradicts_the_shards(tmp_path: Path):
    sharded = models.save_random("llama", tmp_path / "sharded", max_shard_size="30KB")
    index = sharded / "model.safetensors.index.json"
    body = json.loads(index.read_text())
    wrong = {**body["weight_map"], "model.norm.weight": sorted(body["weight_map"].values())[0]}
    index.write_text(json.dumps({**body, "weight_map": wrong}))
    with pytest.raises(CheckpointError, match=r"disagree on .*model\.norm\.weight"):
        run(sharded, tmp_path)
    index.write_text(json.dumps({"weight_map": {"a": "../../etc/passwd"}}))
    with pytest.raises(CheckpointError, match="outside its folder"):
        run(sharded, tmp_path)
    index.write_text(json.dumps({"weight_map": {"a": "gone.safetensors"}}))
    with pytest.raises(CheckpointError, match=r"lacks the shards gone\.safetensors"):
        run(sharded, tmp_path)


def test_an_existing_folder_is_left_alone(plain: Path, tmp_path: Path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="exists already"):
        run(plain, tmp_path)
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine"


def test_disk_full_midway_leaves_nothing(plain: Path, tmp_path: Path, monkeypatch: Any):
    real, written = os.pwrite, []

    def full(descriptor: int, data: Any, position: int) -> int:
        written.append(len(data))
        if sum(written) > 50_000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(descriptor, data, position)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(StorageError, match="No space left"):
        run(plain, tmp_path)
    assert len(written) > 2
    assert_nothing_left(tmp_path)


def test_ids_outside_the_vocabulary(plain: Path, tmp_path: Path):
    config = json.loads((plain / "config.json").read_text())
    (plain / "config.json").write_text(json.dumps({**config, "eos_token_id": 4000}))
    with pytest.raises(CheckpointError, match="eos_token_id = 4000"):
        run(plain, tmp_path)
    assert_nothing_left(tmp_path)


@pytest.mark.parametrize("body", ["", "[]", "{", '{"model_type": "llama", "hidden_size": "x"}'])
def test_damaged_config(plain: Path, tmp_path: Path, body: str):
    (plain / "config.json").write_text(body)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        run(plain, tmp_path)
    assert_nothing_left(tmp_path)
