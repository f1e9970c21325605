"""What a node refuses to hold, by name of the file at fault."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from unit.node.subjects import FINGERPRINT, manifest_of, write_manifest, write_weights
from veilrun.checkpoint.folder import Checkpoint
from veilrun.equivariant.client import ClientFacts, write_kit
from veilrun.errors import CheckpointError, RefusedError
from veilrun.keys import MasterKey, save_key
from veilrun.node.folder import open_folder, verify_weights


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    out = tmp_path / "out"
    out.mkdir()
    write_manifest(out, 10)
    for name in ("config.json", "generation_config.json", "model.safetensors", "README.md"):
        (out / name).write_text("{}")
    return out


def test_an_encrypted_checkpoint_is_accepted(folder: Path) -> None:
    assert open_folder(folder).fingerprint == FINGERPRINT


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("tokenizer.json", "tokenizer"),
        ("Tokenizer.MODEL", "tokenizer"),
        ("tokenizer_config.json", "tokenizer"),
        ("vocab.txt", "tokenizer"),
        ("vocab.json", "tokenizer"),
        ("merges.txt", "tokenizer"),
        ("spiece.model", "tokenizer"),
        ("sentencepiece.bpe.model", "tokenizer"),
        ("tekken.json", "tokenizer"),
        ("qwen.tiktoken", "tokenizer"),
        ("model.gguf", "tokenizer"),
        ("original/tokenizer.model", "tokenizer"),
        ("pytorch_model.bin", "pickle"),
        ("pytorch_model-00001-of-00002.bin", "pickle"),
        ("model.pt", "pickle"),
        ("old/consolidated.00.pth", "pickle"),
        ("training.pkl", "pickle"),
    ],
)
def test_forbidden_files_are_named(folder: Path, name: str, kind: str) -> None:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"x")
    with pytest.raises(RefusedError) as refusal:
        open_folder(folder)
    assert f"{name} ({kind})" in str(refusal.value)


def test_all_of_them_are_named_at_once(folder: Path) -> None:
    for name in ("tokenizer.json", "model.bin", "merges.txt"):
        (folder / name).write_bytes(b"x")
    with pytest.raises(RefusedError, match=r"merges.txt.*model.bin.*tokenizer.json"):
        open_folder(folder)


def test_a_key_file_is_found_under_any_name(folder: Path) -> None:
    save_key(MasterKey.generate(), folder / "notes", "passphrase", scrypt_log2_n=10)
    with pytest.raises(RefusedError, match=r"notes \(key\)"):
        open_folder(folder)


@pytest.mark.parametrize("name", ["client.json", "kits/0123/client.json", "notes"])
def test_a_client_kit_is_found_wherever_it_lies(folder: Path, tmp_path: Path, name: str) -> None:
    with Checkpoint(write_weights(tmp_path / "plain")) as plain:
        write_kit(tmp_path, plain, ClientFacts("m", "0" * 64, "llama", 10, 64, (2,), "0" * 64))
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "client.json").rename(path)
    with pytest.raises(RefusedError) as refusal:
        open_folder(folder)
    assert f"{name} (client kit)" in str(refusal.value)


def test_a_plain_checkpoint_is_not_served(folder: Path) -> None:
    (folder / "veilrun.json").unlink()
    with pytest.raises(CheckpointError, match="not an encrypted checkpoint"):
        open_folder(folder)


def test_a_damaged_manifest_is_a_checkpoint_error(folder: Path) -> None:
    (folder / "veilrun.json").write_text('{"format": "something else"}')
    with pytest.raises(CheckpointError, match=r"veilrun.json"):
        open_folder(folder)


def test_no_folder_is_a_checkpoint_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a folder"):
        open_folder(tmp_path / "nowhere")


# --- the weights --------------------------------------------------------------------------


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return write_weights(tmp_path / "weights")


def test_the_weights_of_the_manifest_verify(weights: Path) -> None:
    verify_weights(weights, manifest_of(weights, 10))


def test_one_other_bit_in_the_weights_is_a_checkpoint_error(weights: Path) -> None:
    manifest = manifest_of(weights, 10)
    path = weights / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"not those that `veilrun encrypt` wrote.*damaged"):
        verify_weights(weights, manifest)


def test_weights_cut_short_are_a_checkpoint_error(weights: Path) -> None:
    manifest = manifest_of(weights, 10)
    path = weights / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError):
        verify_weights(weights, manifest)


def test_abandoned_verification_reads_no_further(tmp_path: Path) -> None:
    n_asked = 0

    def is_abandoned() -> bool:
        nonlocal n_asked
        n_asked += 1
        time.sleep(0.001)  # tensors are large where this matters
        return True

    weights = write_weights(tmp_path / "weights", n_tensors=2000)
    manifest = manifest_of(weights, 10)
    with pytest.raises(Exception, match=r"^$") as ended:
        verify_weights(weights, manifest, is_abandoned)
    assert not isinstance(ended.value, CheckpointError)
    assert n_asked < 200
