"""Covariant copies: the algebra is exact, only norms and noise are not; every number is checked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from veilrun.equivariant import agreement, covariant
from veilrun.equivariant import compile as compiler
from veilrun.equivariant.client import open_kit
from veilrun.equivariant.covariant import Noise, covariant_key
from veilrun.equivariant.families import family_of
from veilrun.errors import UnsupportedModel, UsageError
from veilrun.keys import MasterKey

KEY = MasterKey(bytes(range(32)))
NOISY = ["llama", "llama-tied-biases-mha", "llama-wide-head-rope-scaled", "mistral-sliding"]
NOISY += ["qwen2-tied-sliding", "qwen3", "qwen3-tied", "phi3", "phi3-partial-rotary"]
NOISY += ["mixtral", "qwen3_moe"]
OTHERS = ["gemma2", "gemma3", "gpt2", "gpt_neox"]


def run(plain: Path, work: Path, noise: Noise, **options: Any) -> compiler.Encryption:
    return compiler.encrypt(plain, work / "out", KEY, kits=work / "kits", noise=noise, **options)


def logits(folder: Path, ids: tuple[int, ...]) -> Tensor:
    with torch.no_grad():
        result: Tensor = models.load(folder)(torch.tensor([ids])).logits[0].double()
    return result


@pytest.mark.parametrize("sizes", [(24, 1), (24, 5), (48, 96), (160, 128)])
def test_reading_undoes_writing_and_the_mean_norm_is_kept(sizes: tuple[int, int]):
    n, h = sizes
    key = covariant_key(KEY.stream("test"), n, h)
    x, y = torch.randn(2, n, 7, dtype=torch.float64)
    assert (key.size, key.n_out) == (n, n + 2 * h) == (key.write(x).shape[0] - 2 * h, n + 2 * h)
    assert torch.allclose(key.read(y).T @ key.write(x), y.T @ x, atol=1e-9)
    gram = (key.writer.T @ key.writer).numpy()
    assert np.trace(gram) == pytest.approx(n + 2 * h)
    values = np.linalg.eigvalsh(gram / (1 + 2 * h / n))
    assert values.max() / values.min() > 1.5, "an orthogonal key would keep every inner product"


@pytest.mark.parametrize("name", NOISY)
def test_without_spread_and_noise_the_copy_is_exact(name: str, tmp_path: Path, monkeypatch: Any):
    """What is left is an orthogonal key inside a longer stream: no norm can tell."""
    real = covariant_key

    def orthogonal(stream: Any, n: int, expansion: int) -> Any:
        key = real(stream, n, expansion)
        inside, _ = torch.linalg.qr(key.writer)
        scale = ((n + 2 * expansion) / n) ** 0.5
        return covariant.Expand(inside * scale, inside / scale)

    monkeypatch.setattr("veilrun.equivariant.spaces.covariant_key", orthogonal)
    plain = models.save_random(name, tmp_path / "plain")
    made = run(plain, tmp_path, Noise(0.0, 0.0, 8))
    config = json.loads((made.folder / "config.json").read_text())
    before = json.loads((plain / "config.json").read_text())
    assert config["hidden_size"] == before["hidden_size"] + 16
    assert config["tie_word_embeddings"] is False
    codec = open_kit(made.client, KEY, made.fingerprint).codec
    expected = logits(plain, tuple(range(20)))
    actual = logits(made.folder, codec.encode(range(20)))[:, list(codec.encode(range(96)))]
    assert (actual - expected).abs().max() < 2e-4 * expected.abs().max()


@pytest.mark.parametrize("name", OTHERS)
def test_other_norms_are_refused_by_family(name: str, tmp_path: Path):
    plain = models.save_random(name, tmp_path / "plain")
    family = family_of(json.loads((plain / "config.json").read_text())["model_type"]).name
    with pytest.raises(UnsupportedModel, match=rf"family {family} has no noisy form"):
        run(plain, tmp_path, Noise.of(1.0))
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.rglob(".*.part"))


def test_noise_has_the_asked_size_and_only_the_ends_have_it(tmp_path: Path):
    plain = models.save_random("llama", tmp_path / "plain")
    tensors = load_file(plain / "model.safetensors")
    made = run(plain, tmp_path, Noise(1.0, 0.5, 8))
    kit = open_kit(made.client, KEY, made.fingerprint)
    sealed = load_file(made.folder / "model.safetensors")
    shape = family_of("llama").shape(models.CONFIGS["llama"]())
    spaces = compiler.Spaces(
        KEY, kit.facts.digest, kit.facts.family, family_of("llama"), shape, "structured", made.noise
    )
    residual = spaces.of("residual", 48, None, None)
    order = list(kit.codec.encode(range(96)))

    def noise(name: str, back: Any, gain: Tensor | float = 1.0) -> tuple[float, float]:
        table = tensors[name].double() * gain
        given = back(sealed[name][order].double().T).T
        return float((given - table).std()), float(table.std(correction=0))

    # What one side writes, the other's transpose reads back.
    writer, reader = residual.writer, residual.reader
    made_of, spread = noise("model.embed_tokens.weight", lambda x: reader.T @ x)
    assert made_of == pytest.approx(spread, rel=0.05)
    gain = tensors["model.norm.weight"].double()
    made_of, spread = noise("lm_head.weight", lambda x: writer.T @ x, gain)
    assert made_of == pytest.approx(0.5 * spread, rel=0.05)
    for name, one in sealed.items():
        if "norm" in name:
            assert one.shape == (64,) and torch.all(one == 1.0)


def test_spectra_do_not_survive(tmp_path: Path):
    """Whatever an orthogonal key does, a reader keeps its singular values; here it must not."""
    plain = models.save_random("llama", tmp_path / "plain")
    tensors = load_file(plain / "model.safetensors")
    layer = "model.layers.0."
    gate = tensors[layer + "mlp.gate_proj.weight"].double()
    gate *= tensors[layer + "post_attention_layernorm.weight"].double()

    def spectrum(folder: Path) -> Tensor:
        sealed = load_file(folder / "model.safetensors")[layer + "mlp.gate_proj.weight"]
        return torch.linalg.svdvals(sealed.double())[:48]

    expected = torch.linalg.svdvals(gate)
    whole = compiler.encrypt(plain, tmp_path / "whole", KEY, kits=tmp_path / "kits")
    assert torch.allclose(spectrum(whole.folder), expected, rtol=1e-4)
    made = run(plain, tmp_path, Noise(0.0, 0.0, 8))
    relative = (spectrum(made.folder) / expected - 1).abs()
    assert relative.max() > 0.1


def test_copies_of_other_strength_share_no_secret(tmp_path: Path):
    """Two copies that shared their noise would give it away by their difference."""
    plain = models.save_random("llama", tmp_path / "plain")
    made = [
        run(plain, tmp_path / str(number), noise)
        for number, noise in enumerate([Noise.of(0.5, 8), Noise.of(1.0, 8), Noise.of(1.0, 8)])
    ]
    plainly = compiler.encrypt(plain, tmp_path / "out", KEY, kits=tmp_path / "kits")
    assert len({one.fingerprint for one in [*made, plainly]}) == 3
    codecs = [open_kit(one.client, KEY, one.fingerprint).codec for one in [*made, plainly]]
    orders = [codec.encode(range(96)) for codec in codecs]
    assert orders[1] == orders[2] and len(set(orders)) == 3
    weights = [(one.folder / "model.safetensors").read_bytes() for one in made]
    assert weights[0] != weights[1] == weights[2]


@pytest.mark.parametrize(
    ("asked", "heads", "given"), [(None, 4, 12), (8, 4, 8), (7, 4, 8), (1, 5, 5), (130, 4, 130)]
)
def test_the_heads_still_divide_the_stream(asked: int | None, heads: int, given: int):
    shape = family_of("llama").shape(models.CONFIGS["llama"]())
    sizes = type(shape)(**{**{n: getattr(shape, n) for n in shape.__slots__}, "n_heads": heads})
    assert Noise.of(1.0, asked).fitted(family_of("llama"), sizes).expansion == given


def test_bad_numbers_are_refused(tmp_path: Path):
    for bad in (-1.0, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="standard deviations"):
            Noise.of(bad)
    with pytest.raises(UsageError, match="expansion"):
        Noise.of(1.0, 0)
    plain = models.save_random("llama", tmp_path / "plain")
    with pytest.raises(UsageError, match="leave out the strength"):
        run(plain, tmp_path, Noise.of(1.0), strength="haar")


def test_real_text_shows_what_noise_costs(stories: Path, tmp_path: Path):
    """Keys alone change little; the paper's full noise leaves a small model little."""
    windows = agreement.windows(stories, agreement.SAMPLE_TEXT, 256, 128)
    shares = []
    for number, amount in enumerate((0.0, 0.25, 1.0)):
        made = run(stories, tmp_path / str(number), Noise.of(amount))
        codec = open_kit(made.client, KEY, made.fingerprint).codec
        result = agreement.measure(stories, made.folder, codec, windows, "float32")
        shares.append(result.top_token_share)
    assert 0.75 < shares[0] < 1.0
    assert shares[0] > shares[1] > shares[2]
    assert shares[2] < 0.4


def test_stock_generate_runs_in_half_precision(tmp_path: Path):
    plain = models.save_random("qwen2", tmp_path / "plain", dtype=torch.bfloat16)
    made = run(plain, tmp_path, Noise.of(0.5))
    model = models.load(made.folder, torch.bfloat16)
    said = model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=4, min_new_tokens=4)
    assert said.shape == (1, 7)
