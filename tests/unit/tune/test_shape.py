"""A model's shape from its configuration, beside the weights that the model really has."""

from __future__ import annotations

import math
import re

import pytest
import torch
import transformers
from models import CONFIGS

from veilrun.tune import shape
from veilrun.tune.shape import Shape

LAYER = re.compile(r"\.(layers|h)\.\d+\.")


EXPERTS = re.compile(r"\.experts\.")


def met(of: str, parameter: torch.Tensor, config) -> float:
    """Weights of a matrix that one token meets; of experts, those that it is sent to."""
    share = config.num_experts_per_tok / parameter.shape[0] if EXPERTS.search(of) else 1.0
    return parameter.numel() * share


@pytest.mark.parametrize("name", CONFIGS)
def test_the_weights_of_all_layers_are_counted(name: str):
    config = CONFIGS[name]()
    model = transformers.AutoModelForCausalLM.from_config(config)
    n_real = sum(
        met(of, parameter, config)
        for of, parameter in model.named_parameters()
        if parameter.ndim >= 2 and LAYER.search(of)
    )
    found = shape.read(config)
    assert found.n_body_params == pytest.approx(n_real, rel=0.03)
    assert found.n_head_params == model.get_output_embeddings().weight.numel()
    if hasattr(config, "num_experts_per_tok"):
        return  # some layers have experts, which are not `Linear`, and some an MLP, which is
    linear = (one for one in model.modules() if isinstance(one, torch.nn.Linear))
    n_linear = sum(one.weight.numel() for one in linear)
    assert found.n_linear_params == pytest.approx(n_linear, rel=0.03)


@pytest.mark.parametrize("name", CONFIGS)
def test_features_are_finite_and_words_name_the_family(name: str):
    config = CONFIGS[name]()
    found = shape.read(config)
    assert all(math.isfinite(value) for value in found.features().values())
    assert (found.n_layers, found.vocab_size) == (2, 96)
    assert found.hidden == config.hidden_size
    assert config.model_type in found.describe() and str(found.hidden) in found.describe()


def test_shared_keys_and_values_are_seen():
    grouped, own = (shape.read(CONFIGS[name]()) for name in ("llama", "llama-tied-biases-mha"))
    assert grouped.features()["kv_share"] == 0.5
    assert own.features()["kv_share"] == 1.0
    assert shape.read(CONFIGS["gpt2"]()).features()["kv_share"] == 1.0
    assert grouped.n_body_params < own.n_body_params


def test_the_family_is_a_word_and_no_feature():
    one, other = (
        Shape(family, 2, 64, 4, 4, 128, 512, gated=True) for family in ("llama", "mistral")
    )
    assert one.features() == other.features()
    assert one.describe() != other.describe()
