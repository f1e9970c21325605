"""Loading BERT, DistilBERT and RoBERTa checkpoints, and refusing everything else by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from veilrun.errors import CheckpointError, DecodeError, UnsupportedModel, UsageError
from veilrun.mpc.model.architecture import Architecture, FloatModel, load, random_model

BERT: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "max_position_embeddings": 20,
    "num_labels": 3,
}
DISTIL: dict[str, Any] = {
    "vocab_size": 50,
    "dim": 24,
    "hidden_dim": 40,
    "n_layers": 2,
    "n_heads": 3,
    "max_position_embeddings": 20,
    "num_labels": 3,
}
ROBERTA = {**BERT, "type_vocab_size": 1}
SHAPE = Architecture(
    family="bert",
    n_layers=2,
    n_heads=3,
    hidden=24,
    intermediate=40,
    n_vocab=50,
    n_positions=20,
    position_offset=0,
    head_activation="tanh",
    n_labels=3,
    labels=("LABEL_0", "LABEL_1", "LABEL_2"),
)
FAMILIES: dict[str, Callable[..., Any]] = {
    "bert": lambda **more: transformers.BertConfig(**BERT, **more),
    "distilbert": lambda **more: transformers.DistilBertConfig(**DISTIL, **more),
    "roberta": lambda **more: transformers.RobertaConfig(**ROBERTA, **more),
}
NAMES = {"bert": "Bert", "distilbert": "DistilBert", "roberta": "Roberta"}


def save(folder: Path, family: str, kind: str, dtype: torch.dtype = torch.float32, **config: Any):
    """Save a random model with norms and biases far from trivial."""
    generator = torch.Generator().manual_seed(7)
    made = getattr(transformers, NAMES[family] + kind)(FAMILIES[family](**config))
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                gain = "norm" in name.lower() and name.endswith("weight")
                parameter.copy_(0.3 * noise + (1.0 if gain else 0.0))
            else:
                parameter.copy_(noise * parameter.shape[-1] ** -0.5)
    made.to(dtype).eval().save_pretrained(folder)
    return made


def edit_config(folder: Path, **settings: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config.update(settings)
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))


def edit_tensors(folder: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path)


def arrays(model: FloatModel) -> list[np.ndarray]:
    found: list[np.ndarray] = []

    def walk(value: Any) -> None:
        if isinstance(value, np.ndarray):
            found.append(value)
        elif isinstance(value, tuple):
            for one in value:
                walk(one)
        elif hasattr(value, "__slots__"):
            for slot in value.__slots__:
                walk(getattr(value, slot))

    walk(model)
    return found


@pytest.mark.parametrize("family", NAMES)
@pytest.mark.parametrize("kind", ["Model", "ForMaskedLM", "ForSequenceClassification"])
def test_every_family_loads_into_one_shape(tmp_path: Path, family: str, kind: str):
    save(tmp_path, family, kind)
    model = load(tmp_path)
    shape = model.architecture
    classifier = kind == "ForSequenceClassification"
    assert (shape.family, shape.n_layers, shape.n_heads, shape.head_dim) == (family, 2, 3, 8)
    assert shape.position_offset == (2 if family == "roberta" else 0)
    assert shape.max_tokens == (18 if family == "roberta" else 20)
    activation = "relu" if family == "distilbert" else "tanh"
    assert shape.head_activation == (activation if classifier else None)
    assert shape.labels == (("LABEL_0", "LABEL_1", "LABEL_2") if classifier else ())
    assert (model.head is not None) == classifier
    assert model.layers[0].qkv.weight.shape == (24, 72) and len(model.layers) == 2
    assert model.layers[1].up.weight.shape == (24, 40)
    assert model.word.shape == (50, 24) and model.position.shape == (20, 24)
    for one in arrays(model):
        assert one.dtype == np.float32 and one.flags.c_contiguous and one.flags.writeable


def test_weights_are_turned_joined_and_types_are_added(tmp_path: Path):
    made = save(tmp_path, "bert", "Model").state_dict()
    model = load(tmp_path)
    layer, attention = model.layers[1], "encoder.layer.1.attention."
    for index, word in enumerate(["query", "key", "value"]):
        columns = slice(24 * index, 24 * index + 24)
        weight, bias = (made[f"{attention}self.{word}.{part}"] for part in ("weight", "bias"))
        assert np.array_equal(layer.qkv.weight[:, columns], weight.numpy().T)
        assert np.array_equal(layer.qkv.bias[columns], bias.numpy())
    types = made["embeddings.token_type_embeddings.weight"][0]
    position = made["embeddings.position_embeddings.weight"] + types
    assert np.array_equal(model.position, position.numpy())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_loads_exactly(tmp_path: Path, dtype: torch.dtype):
    made = save(tmp_path, "distilbert", "Model", dtype)
    assert np.array_equal(load(tmp_path).word, made.embeddings.word_embeddings.weight.float().data)


@pytest.mark.parametrize("family", NAMES)
def test_a_regression_head_and_named_labels(tmp_path: Path, family: str):
    save(tmp_path / "one", family, "ForSequenceClassification")
    edit_config(tmp_path / "one", id2label={"0": "bad", "1": "so so", "2": "good"})
    assert load(tmp_path / "one").architecture.labels == ("bad", "so so", "good")
    edit_config(tmp_path / "one", id2label=...)
    assert load(tmp_path / "one").architecture.labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    edit_config(tmp_path / "one", id2label={"0": "bad", "1": "good"})
    with pytest.raises(CheckpointError, match="names 2 labels, the classifier has 3"):
        load(tmp_path / "one")


def test_old_words_for_norms_and_stored_buffers(tmp_path: Path):
    """As in the checkpoints that came from TensorFlow."""
    save(tmp_path, "bert", "ForMaskedLM")
    before = load(tmp_path)

    def to_old(tensors: dict[str, Any]) -> None:
        for name in [name for name in tensors if "LayerNorm" in name]:
            old = name.replace(".weight", ".gamma").replace(".bias", ".beta")
            tensors[old] = tensors.pop(name)
        tensors["bert.embeddings.position_ids"] = np.arange(20)[None]
        tensors["cls.seq_relationship.weight"] = np.zeros((2, 24), np.float32)

    edit_tensors(tmp_path, to_old)
    for old, new in zip(arrays(before), arrays(load(tmp_path)), strict=True):
        assert np.array_equal(old, new)


@pytest.mark.parametrize("family", NAMES)
def test_without_stated_architecture_the_classifier_decides(tmp_path: Path, family: str):
    save(tmp_path, family, "ForSequenceClassification")
    edit_config(tmp_path, architectures=...)
    assert load(tmp_path).architecture.n_labels == 3


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model_type": "electra"}, "'electra'; known: bert, distilbert, roberta"),
        ({"hidden_act": "gelu_new"}, "hidden_act = 'gelu_new'"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ({"is_decoder": True, "add_cross_attention": True}, "is_decoder.*add_cross_attention"),
        ({"problem_type": "multi_label_classification"}, "problem_type"),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads"),
        ({"quantization_config": {}}, "quantization_config"),
        ({"architectures": ["BertForTokenClassification"]}, "BertForTokenClassification"),
    ],
)
def test_settings_without_a_private_form_are_named(tmp_path: Path, settings: Any, words: str):
    save(tmp_path, "bert", "ForSequenceClassification")
    edit_config(tmp_path, **settings)
    with pytest.raises(UnsupportedModel, match=words):
        load(tmp_path)


@pytest.mark.parametrize("family", NAMES)
def test_unknown_and_missing_parameters_are_all_named(tmp_path: Path, family: str):
    save(tmp_path, family, "ForSequenceClassification")
    start = {"bert": "bert.encoder", "roberta": "roberta.encoder"}.get(family, "distilbert.x")
    extra = [f"{start}.layer.0.lora_A.weight", "another.bias", f"{start}.layer.2.strange.bias"]
    edit_tensors(tmp_path, lambda all_: all_.update(dict.fromkeys(extra, np.zeros(3, np.float32))))
    with pytest.raises(UnsupportedModel) as raised:
        load(tmp_path)
    assert all(name in str(raised.value) for name in extra)
    edit_tensors(tmp_path, lambda all_: [all_.pop(name) for name in extra])
    edit_tensors(tmp_path, lambda all_: [all_.pop(name) for name in sorted(all_)[-2:]])
    with pytest.raises(CheckpointError, match=r"lacks the parameters .*, "):
        load(tmp_path)


def test_a_layer_more_than_the_configuration_says_is_not_dropped(tmp_path: Path):
    save(tmp_path, "bert", "Model")
    edit_config(tmp_path, num_hidden_layers=1)
    with pytest.raises(UnsupportedModel, match=r"encoder\.layer\.1\.output\.dense\.weight"):
        load(tmp_path)


def test_wrong_shapes_dtypes_and_values_are_damage(tmp_path: Path):
    save(tmp_path, "bert", "ForSequenceClassification")
    edit_config(tmp_path, vocab_size=51, intermediate_size=41)
    with pytest.raises(CheckpointError) as raised:
        load(tmp_path)
    assert "word_embeddings.weight is [50, 24] and must be [51, 24]" in str(raised.value)
    assert "layer.1.intermediate.dense.bias is [40] and must be [41]" in str(raised.value)
    edit_config(tmp_path, vocab_size=50, intermediate_size=40, num_attention_heads=5)
    with pytest.raises(CheckpointError, match="5 heads do not divide a width of 24"):
        load(tmp_path)
    edit_config(tmp_path, num_attention_heads="3")
    with pytest.raises(CheckpointError, match="num_attention_heads must be a whole number"):
        load(tmp_path)
    edit_config(tmp_path, num_attention_heads=3)
    edit_tensors(tmp_path, lambda all_: all_["classifier.weight"].__setitem__((0, 0), np.nan))
    with pytest.raises(CheckpointError, match=r"classifier\.weight holds values that are not"):
        load(tmp_path)
    whole = np.zeros((3, 24), np.int32)
    edit_tensors(tmp_path, lambda all_: all_.update({"classifier.weight": whole}))
    with pytest.raises(CheckpointError, match="has dtype I32"):
        load(tmp_path)


def test_a_parameter_stored_twice_is_damage(tmp_path: Path):
    save(tmp_path, "bert", "ForSequenceClassification")
    name = "pooler.dense.bias"
    edit_tensors(tmp_path, lambda all_: all_.update({name: all_[f"bert.{name}"]}))
    with pytest.raises(CheckpointError, match="with and without"):
        load(tmp_path)


def test_architecture_goes_through_json():
    assert Architecture.from_json(json.loads(json.dumps(SHAPE.to_json()))) == SHAPE


@pytest.mark.parametrize("change", [
    {"family": "gpt2"}, {"n_heads": 5}, {"n_layers": 0}, {"hidden": 1 << 40}, {"n_labels": 2},
    {"labels": ["a", "b", 3]}, {"head_activation": None}, {"head_activation": "gelu"},
    {"position_offset": 20}, {"more": 1}, {"n_vocab": True}, {"labels": "abc"},
])  # fmt: skip
def test_a_contradicting_architecture_is_a_decode_error(change: dict[str, Any]):
    with pytest.raises(DecodeError, match="architecture"):
        Architecture.from_json({**SHAPE.to_json(), **change})
    for name in SHAPE.to_json():
        with pytest.raises(DecodeError, match=f"architecture.{name} is missing"):
            Architecture.from_json({k: v for k, v in SHAPE.to_json().items() if k != name})


def test_an_architecture_made_here_is_a_usage_error():
    with pytest.raises(UsageError, match="2 labels for 3 logits"):
        Architecture(**{**SHAPE.to_json(), "labels": ("a", "b")})


def test_random_models_repeat_and_look_as_initialised():
    one, same, other = (random_model(SHAPE, seed) for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(arrays(one), arrays(same), strict=True))
    assert not np.array_equal(one.word, other.word)
    assert one.head is not None and one.head.out.weight.shape == (24, 3)
    assert abs(np.std(one.word) - 0.02) < 0.002 and np.all(one.norm.gain == 1)
    assert all(array.dtype == np.float32 for array in arrays(one))


def test_no_repr_shows_a_weight():
    model = random_model(SHAPE, 1)
    assert repr(model) == f"FloatModel({SHAPE!r})"
    assert "array" not in repr(model.layers) + repr(model.head) + repr(model.norm)
