"""Every family: encrypted equals plain, and a wrong word in any table row shows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import models
import pytest
import torch
from safetensors.torch import load_file, save_file

from veilrun.equivariant import compile as compiler
from veilrun.equivariant.client import open_kit
from veilrun.equivariant.families import FAMILIES, family_of
from veilrun.equivariant.families.table import (
    Buffer,
    Embedding,
    Family,
    HeadNorm,
    Linear,
    Norm,
    PerHead,
    Row,
)
from veilrun.errors import UnsupportedModel, VeilrunError
from veilrun.keys import MasterKey

KEY = MasterKey(bytes(range(32)))
IDS = torch.randint(0, models.VOCAB, (3, 24), generator=torch.Generator().manual_seed(3))

# Each of a layer's seven or so products rounds its sums once; errors add up over the layers.
# The factor 8 is the growth that the norms allow (gains up to 2, squared, twice).
ROUNDINGS = 8 * (7 * models.LAYERS + 2)


@pytest.fixture(scope="module", params=models.CONFIGS)
def plain(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.save_random(request.param, tmp_path_factory.mktemp("plain") / request.param)


def logits(folder: Path, ids: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    with torch.no_grad():
        return models.load(folder, dtype)(ids).logits.float()


def encrypted_logits(
    plain: Path, work: Path, dtype: torch.dtype = torch.float32, **options: Any
) -> torch.Tensor:
    """Logits of the encrypted checkpoint on encrypted ids, in the order of plain ids."""
    made = compiler.encrypt(plain, work / "out", KEY, kits=work / "kits", **options)
    codec = open_kit(made.client, KEY, made.fingerprint).codec
    cipher_ids = torch.tensor([codec.encode(row) for row in IDS.tolist()])
    order = torch.tensor(codec.encode(range(models.VOCAB)))
    return logits(made.folder, cipher_ids, dtype)[..., order]


@pytest.mark.parametrize("strength", ["structured", "haar", "permutation"])
def test_encrypted_equals_plain(plain: Path, tmp_path: Path, strength: str):
    if strength != "permutation" and "gemma" in plain.name:
        with pytest.raises(UnsupportedModel, match="carries gains"):
            encrypted_logits(plain, tmp_path, strength=strength)
        strength = "permutation"
    assert_equal(plain, tmp_path / strength, strength=strength)


def assert_equal(plain: Path, work: Path, **options: Any) -> None:
    expected = logits(plain, IDS)
    actual = encrypted_logits(plain, work, **options)
    tolerance = ROUNDINGS * torch.finfo(torch.float32).eps * expected.abs().max()
    assert (actual - expected).abs().max() < tolerance
    assert torch.equal(actual.argmax(-1), expected.argmax(-1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "qwen3_moe"])
def test_sixteen_bit_weights(tmp_path: Path, name: str, dtype: torch.dtype):
    """Weights are rounded once more, to the same dtype; the engine itself computes in float32."""
    plain = models.save_random(name, tmp_path / "plain", dtype=dtype)
    expected = logits(plain, IDS)
    actual = encrypted_logits(plain, tmp_path)
    error = (actual - expected).abs()
    if name == "qwen3_moe":  # a rounded router may choose another expert at a near tie
        error = error.flatten(0, 1).amax(-1).sort().values[: int(0.9 * IDS.numel())]
    assert error.max() < ROUNDINGS * torch.finfo(dtype).eps * expected.abs().max()


def test_gpt2_as_the_hub_has_it(tmp_path: Path):
    """Names without the prefix, and the mask as a tensor."""
    plain = models.save_random("gpt2", tmp_path / "plain")
    tensors = load_file(plain / "model.safetensors")
    bare = {name.removeprefix("transformer."): one for name, one in tensors.items()}
    bare |= {f"h.{layer}.attn.bias": torch.ones(1, 1, 64, 64) for layer in range(models.LAYERS)}
    save_file(bare, plain / "model.safetensors", {"format": "pt"})
    assert_equal(plain, tmp_path)


def test_pythia_as_the_hub_has_it(tmp_path: Path):
    """Older spellings in config.json, and three constants per layer as tensors."""
    plain = models.save_random("gpt_neox", tmp_path / "plain")
    tensors = load_file(plain / "model.safetensors")
    for layer in range(models.LAYERS):
        attention = f"gpt_neox.layers.{layer}.attention."
        tensors[attention + "bias"] = torch.ones(1, 1, 64, 64, dtype=torch.bool)
        tensors[attention + "masked_bias"] = torch.tensor(-1e9)
        tensors[attention + "rotary_emb.inv_freq"] = torch.ones(2)
    save_file(tensors, plain / "model.safetensors", {"format": "pt"})
    config = json.loads((plain / "config.json").read_text())
    del config["rope_parameters"]
    config |= {"rotary_pct": 0.5, "rotary_emb_base": 10000}
    (plain / "config.json").write_text(json.dumps(config))
    assert models.load(plain).config.rope_parameters["partial_rotary_factor"] == 0.5
    assert_equal(plain, tmp_path)


def mutations(family: Family, row: Row) -> Iterator[Row]:
    """Rows that each say one wrong thing. Where gains are carried, no fold can go wrong."""
    match row:
        case Linear():
            for axis in ("out", "into"):
                value = getattr(row, axis)
                yield replace(row, **{axis: _wrong_axis(value)})
                if isinstance(value, PerHead):
                    yield replace(row, **{axis: value.axes})
            if row.after is not None and not family.carries:
                yield replace(row, after=None)
            if row.transposed:
                yield replace(row, transposed=False)
        case Embedding():
            yield replace(row, index="position" if row.index == "vocabulary" else "units")
        case Norm(kind="layer"):
            yield replace(row, kind="rms")
        case Norm(carried=True):
            yield replace(row, carried=False)
        case Norm() if row.kind == "rms":
            yield replace(row, kind="rms+1")
        case HeadNorm():
            yield replace(row, axis="key" if row.axis == "query" else "query")
            if row.kind == "rms+1":
                yield replace(row, kind="rms")


def _wrong_axis(axis: Any) -> Any:
    if isinstance(axis, PerHead):
        return PerHead((*axis.axes[:-2], axis.axes[-1], axis.axes[-2]))
    if isinstance(axis, tuple):
        return (*axis[:-2], axis[-1], axis[-2])
    return "position"


def planted_errors() -> Iterator[Any]:
    for family in FAMILIES:
        for index, row in enumerate(family.rows):
            for number, wrong in enumerate(mutations(family, row)):
                yield pytest.param(
                    family, index, wrong, id=f"{family.name}-{row.name.split('.')[-1]}-{number}"
                )


@pytest.fixture(scope="module")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[tuple[Path, Any]]]:
    """Per family: saved checkpoints and their plain logits."""
    result: dict[str, list[tuple[Path, Any]]] = {}
    for name, config in models.CONFIGS.items():
        folder = models.save_random(name, tmp_path_factory.mktemp("subject") / name)
        family = family_of(config().model_type).name
        result.setdefault(family, []).append((folder, logits(folder, IDS)))
    return result


@pytest.mark.parametrize(("family", "index", "wrong"), list(planted_errors()))
def test_an_error_in_any_row_shows(
    subjects: Any, tmp_path: Path, monkeypatch: Any, family: Family, index: int, wrong: Row
):
    rows = (*family.rows[:index], wrong, *family.rows[index + 1 :])
    try:
        bad = replace(family, rows=rows)
    except ValueError:
        return  # the table contradicts itself
    monkeypatch.setattr(compiler, "family_of", lambda model_type: bad)
    for number, (plain, expected) in enumerate(subjects[family.name]):
        try:
            actual = encrypted_logits(plain, tmp_path / str(number))
        except (VeilrunError, RuntimeError):
            return  # refused, or axes that do not fit: it shows
        if (actual - expected).abs().max() > 0.01 * expected.abs().max():
            return
    pytest.fail("the wrong row changes nothing that the tests can see")


def test_every_buffer_row_is_needed():
    """Constants that old checkpoints store are known by name, so they are not 'unknown'."""
    buffers = {row.name for family in FAMILIES for row in family.rows if isinstance(row, Buffer)}
    assert "transformer.h.{layer}.attn.bias" in buffers
    assert "gpt_neox.layers.{layer}.attention.rotary_emb.inv_freq" in buffers
