"""GPT-2 and GPT-NeoX (Pythia): LayerNorm with bias, plain MLP.

GPT-2 learns its positions, stores weights transposed (Conv1D) and fuses query, key and value
side by side; GPT-NeoX turns part of each head, interleaves the three by head, and runs
attention and MLP in parallel, which changes no axis.
"""

from __future__ import annotations

from typing import Any, Final

from veilrun.equivariant.families.table import (
    Buffer,
    Embedding,
    Family,
    Linear,
    Norm,
    PerHead,
    Shape,
    rotary_dim,
)

_BLOCK: Final = "transformer.h.{layer}."
_LAYER: Final = "gpt_neox.layers.{layer}."


def _gpt2_shape(config: Any) -> Shape:
    return Shape(
        n_layers=config.n_layer,
        hidden=config.n_embd,
        n_heads=config.n_head,
        n_kv_heads=config.n_head,
        head_dim=config.n_embd // config.n_head,
        rotary_dim=0,
        vocab_size=config.vocab_size,
    )


def _neox_shape(config: Any) -> Shape:
    head_dim = config.hidden_size // config.num_attention_heads
    return Shape(
        n_layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        n_heads=config.num_attention_heads,
        n_kv_heads=config.num_attention_heads,
        head_dim=head_dim,
        rotary_dim=rotary_dim(config, head_dim),
        vocab_size=config.vocab_size,
    )


GPT2: Final = Family(
    name="gpt2",
    model_types=("gpt2",),
    embedding="transformer.wte",
    head="lm_head",
    prefix="transformer.",
    rows=(
        Embedding("transformer.wte", index="vocabulary"),
        Embedding("transformer.wpe", index="position"),
        Norm("transformer.ln_f", kind="layer"),
        Linear("lm_head", out="vocabulary", into="residual", after="transformer.ln_f"),
        Norm(_BLOCK + "ln_1", kind="layer"),
        Linear(
            _BLOCK + "attn.c_attn",
            out=("query", "key", "value"),
            into="residual",
            after="ln_1",
            transposed=True,
        ),
        Linear(_BLOCK + "attn.c_proj", out="residual", into="context", transposed=True),
        Norm(_BLOCK + "ln_2", kind="layer"),
        Linear(_BLOCK + "mlp.c_fc", out="units", into="residual", after="ln_2", transposed=True),
        Linear(_BLOCK + "mlp.c_proj", out="residual", into="units", transposed=True),
        Buffer(_BLOCK + "attn.bias"),
        Buffer(_BLOCK + "attn.masked_bias"),
    ),
    shape=_gpt2_shape,
)

GPT_NEOX: Final = Family(
    name="gpt_neox",
    model_types=("gpt_neox",),
    embedding="gpt_neox.embed_in",
    head="embed_out",
    rows=(
        Embedding("gpt_neox.embed_in", index="vocabulary"),
        Norm("gpt_neox.final_layer_norm", kind="layer"),
        Linear("embed_out", "vocabulary", "residual", after="gpt_neox.final_layer_norm"),
        Norm(_LAYER + "input_layernorm", kind="layer"),
        Linear(
            _LAYER + "attention.query_key_value",
            out=PerHead(("query", "key", "value")),
            into="residual",
            after="input_layernorm",
        ),
        Linear(_LAYER + "attention.dense", out="residual", into="context"),
        Norm(_LAYER + "post_attention_layernorm", kind="layer"),
        Linear(
            _LAYER + "mlp.dense_h_to_4h",
            out="units",
            into="residual",
            after="post_attention_layernorm",
        ),
        Linear(_LAYER + "mlp.dense_4h_to_h", out="residual", into="units"),
        Buffer(_LAYER + "attention.bias"),
        Buffer(_LAYER + "attention.masked_bias"),
        Buffer(_LAYER + "attention.rotary_emb.inv_freq"),
    ),
    shape=_neox_shape,
)
