"""Small random checkpoints of every family, with every option that changes a table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

VOCAB, LAYERS = 96, 2

_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_MOE = {"num_experts_per_tok": 2}
_NEOX = {k: v for k, v in _SIZES.items() if k != "num_key_value_heads"}
_GPT2: dict[str, Any] = {
    "vocab_size": VOCAB,
    "n_embd": 48,
    "n_layer": LAYERS,
    "n_head": 4,
    "n_positions": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": lambda: transformers.LlamaConfig(**_SIZES),
    "llama-tied-biases-mha": lambda: transformers.LlamaConfig(
        **{**_SIZES, "num_key_value_heads": 4},
        tie_word_embeddings=True,
        attention_bias=True,
        mlp_bias=True,
    ),
    "llama-wide-head-rope-scaled": lambda: transformers.LlamaConfig(
        **{**_SIZES, "hidden_size": 144, "num_key_value_heads": 1},
        head_dim=16,
        rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0},
    ),
    "mistral-sliding": lambda: transformers.MistralConfig(**_SIZES, sliding_window=5, head_dim=16),
    "qwen2": lambda: transformers.Qwen2Config(**_SIZES),
    "qwen2-tied-sliding": lambda: transformers.Qwen2Config(
        **_SIZES,
        tie_word_embeddings=True,
        use_sliding_window=True,
        sliding_window=5,
        max_window_layers=1,
    ),
    "qwen3": lambda: transformers.Qwen3Config(**_SIZES, head_dim=16),
    "qwen3-tied": lambda: transformers.Qwen3Config(
        **_SIZES, head_dim=8, tie_word_embeddings=True, attention_bias=True
    ),
    "gemma2": lambda: transformers.Gemma2Config(
        **_SIZES,
        head_dim=16,
        sliding_window=5,
        final_logit_softcapping=3.0,
        attn_logit_softcapping=5.0,
        query_pre_attn_scalar=16,
    ),
    "gemma2-untied": lambda: transformers.Gemma2Config(
        **_SIZES, head_dim=16, tie_word_embeddings=False
    ),
    "gemma3-untied": lambda: transformers.Gemma3TextConfig(
        **_SIZES, head_dim=16, tie_word_embeddings=False
    ),
    "gemma3": lambda: transformers.Gemma3TextConfig(
        **_SIZES, head_dim=16, sliding_window=5, layer_types=["sliding_attention", "full_attention"]
    ),
    "phi3": lambda: transformers.Phi3Config(**_SIZES),
    "phi3-partial-rotary": lambda: transformers.Phi3Config(
        **{**_SIZES, "hidden_size": 64},
        sliding_window=5,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.5,
        },
    ),
    "gpt2": lambda: transformers.GPT2Config(**_GPT2),
    "gpt2-untied": lambda: transformers.GPT2Config(**_GPT2, tie_word_embeddings=False),
    "gpt_neox": lambda: transformers.GPTNeoXConfig(**_NEOX),
    "gpt_neox-sequential-no-bias-tied": lambda: transformers.GPTNeoXConfig(
        **_NEOX, use_parallel_residual=False, attention_bias=False, tie_word_embeddings=True
    ),
    "mixtral": lambda: transformers.MixtralConfig(**_SIZES, **_MOE, num_local_experts=4),
    "qwen3_moe": lambda: transformers.Qwen3MoeConfig(
        **_SIZES,
        **_MOE,
        head_dim=16,
        num_experts=4,
        moe_intermediate_size=40,
        norm_topk_prob=True,
        mlp_only_layers=[1],
    ),
}


def save_random(
    name: str, folder: Path, *, dtype: torch.dtype = torch.float32, **save: Any
) -> Path:
    """Save a random checkpoint of `CONFIGS[name]` whose norms and biases are far from trivial."""
    generator = torch.Generator().manual_seed(7)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[name]())
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                centre = 1.0 if "norm" in parameter_name or "ln_" in parameter_name else 0.0
                offset_gain = "gemma" in name or parameter_name.endswith("bias")
                parameter.copy_(0.4 * noise + (0.0 if offset_gain else centre))
            else:
                parameter.copy_(noise * parameter.shape[-1] ** -0.5)
    model.to(dtype).save_pretrained(folder, **save)
    return folder


def load(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """The checkpoint as a stock engine loads it."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, local_files_only=True
    )
    return model.eval()
