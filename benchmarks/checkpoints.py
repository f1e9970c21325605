"""Randomly initialised Llama-shaped checkpoints, written without building the model."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import LlamaConfig

from veilrun.checkpoint.format import SafetensorsWriter

VOCAB = 32_000


def write_llama(
    folder: Path,
    *,
    hidden: int,
    intermediate: int,
    n_layers: int,
    n_heads: int,
    n_kv_heads: int,
    dtype: torch.dtype = torch.bfloat16,
    vocab_size: int = VOCAB,
) -> Path:
    """A checkpoint with normal weights of deviation 0.02 and gains around one."""
    LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=n_layers,
        num_attention_heads=n_heads,
        num_key_value_heads=n_kv_heads,
        max_position_embeddings=2048,
        dtype=str(dtype).removeprefix("torch."),
        bos_token_id=1,
        eos_token_id=2,
    ).save_pretrained(folder)
    key_value = hidden // n_heads * n_kv_heads
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocab_size, hidden),
        "lm_head.weight": (vocab_size, hidden),
        "model.norm.weight": (hidden,),
    }
    for layer in range(n_layers):
        shapes |= {
            f"model.layers.{layer}.{name}.weight": shape
            for name, shape in {
                "input_layernorm": (hidden,),
                "post_attention_layernorm": (hidden,),
                "self_attn.q_proj": (hidden, hidden),
                "self_attn.k_proj": (key_value, hidden),
                "self_attn.v_proj": (key_value, hidden),
                "self_attn.o_proj": (hidden, hidden),
                "mlp.gate_proj": (intermediate, hidden),
                "mlp.up_proj": (intermediate, hidden),
                "mlp.down_proj": (hidden, intermediate),
            }.items()
        }
    generator = torch.Generator().manual_seed(0)
    word = {torch.bfloat16: "BF16", torch.float32: "F32"}[dtype]
    tensors = [(name, word, shape) for name, shape in shapes.items()]
    with SafetensorsWriter(folder / "model.safetensors", tensors) as writer:
        for name, shape in shapes.items():
            noise = torch.randn(shape, generator=generator)
            values = 0.02 * noise if len(shape) > 1 else 1.0 + 0.1 * noise
            writer.write(name, values.to(dtype).view(torch.uint8).numpy().data.cast("B"))
    return folder


def tiny_llama(folder: Path) -> Path:
    """The shape of TinyLlama-1.1B, bf16: 2.2 GB."""
    return write_llama(
        folder, hidden=2048, intermediate=5632, n_layers=22, n_heads=32, n_kv_heads=4
    )


def quarter_llama(folder: Path) -> Path:
    """A quarter of its hidden size, bf16: 0.2 GB."""
    return write_llama(folder, hidden=512, intermediate=1408, n_layers=22, n_heads=8, n_kv_heads=1)
