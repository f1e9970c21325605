"""What a node refuses to hold, by name of the file at fault."""

from __future__ import annotations

from pathlib import Path

import pytest

from unit.node.subjects import FINGERPRINT, write_manifest
from veilrun.errors import CheckpointError, RefusedError
from veilrun.keys import MasterKey, save_key
from veilrun.node.folder import open_folder


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
