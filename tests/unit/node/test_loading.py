"""Folders and settings that the built-in engine cannot use: a `UsageError`, never a traceback."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from unit.node.subjects import plain_model, write_tiny_llama
from veilrun.errors import CheckpointError, UsageError
from veilrun.node.transformers_engine import TransformersEngine, TransformersSettings


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("tiny"))


async def start(folder: Path) -> None:
    """As far as it gets."""
    engine = TransformersEngine(folder)
    try:
        await engine.start()
    finally:
        await engine.stop()


async def test_folder_without_a_configuration_is_a_checkpoint_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no configuration"):
        TransformersEngine(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_size": "large"},  # StrictDataclassError, of no family of errors
        {"num_attention_heads": 0},
        {"rope_parameters": 3},
        {"model_type": "no such model"},
        {"model_type": ["llama"]},
    ],
)
async def test_a_bad_configuration_is_a_checkpoint_error(
    folder: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(CheckpointError, match="no configuration"):
        TransformersEngine(tmp_path)


async def test_missing_weight_is_an_error_and_not_random_numbers(
    folder: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    damaged = write_tiny_llama(tmp_path / "damaged")
    weights = load_file(damaged / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, damaged / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks 1 weights.*up_proj"):
        await start(damaged)


async def test_pickled_weights_are_not_read(tmp_path: Path) -> None:
    pickled = write_tiny_llama(tmp_path / "pickled")
    torch.save(plain_model(pickled).state_dict(), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    with pytest.raises(CheckpointError):
        await start(pickled)


@pytest.mark.parametrize(
    "settings",
    [
        {"max_model_len": 100_000},
        {"max_model_len": 1},
        {"cache_bytes": 10},
        {"dtype": "float8"},
        {"device": "no such device"},
    ],
)
async def test_settings_that_do_not_suit_the_model_are_usage_errors(
    folder: Path, settings: dict[str, Any]
) -> None:
    with pytest.raises(UsageError):
        TransformersEngine(folder, TransformersSettings(**settings))
