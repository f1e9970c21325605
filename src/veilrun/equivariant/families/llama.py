"""Llama and its close relatives: RMSNorm, gated MLP, rotary positions, grouped queries.

Mistral differs only in its sliding window, Qwen2 in its biases, Qwen3 in its query/key norms;
biases are part of every `Linear` row where the checkpoint has them.
"""

from __future__ import annotations

from typing import Final

from veilrun.equivariant.families.table import (
    Buffer,
    Embedding,
    Family,
    HeadNorm,
    Linear,
    Norm,
    Row,
    decoder_shape,
)

LAYER: Final = "model.layers.{layer}."
EMBEDDING: Final = "model.embed_tokens"
HEAD: Final = "lm_head"

ENDS: Final[tuple[Row, ...]] = (
    Embedding(EMBEDDING, index="vocabulary"),
    Norm("model.norm", kind="rms"),
    Linear(HEAD, out="vocabulary", into="residual", after="model.norm"),
    Buffer(LAYER + "self_attn.rotary_emb.inv_freq"),
)

NORMS: Final[tuple[Row, ...]] = (
    Norm(LAYER + "input_layernorm", kind="rms"),
    Norm(LAYER + "post_attention_layernorm", kind="rms"),
)

ATTENTION: Final[tuple[Row, ...]] = (
    Linear(LAYER + "self_attn.q_proj", out="query", into="residual", after="input_layernorm"),
    Linear(LAYER + "self_attn.k_proj", out="key", into="residual", after="input_layernorm"),
    Linear(LAYER + "self_attn.v_proj", out="value", into="residual", after="input_layernorm"),
    Linear(LAYER + "self_attn.o_proj", out="residual", into="context"),
)

HEAD_NORMS: Final[tuple[Row, ...]] = (
    HeadNorm(LAYER + "self_attn.q_norm", axis="query"),
    HeadNorm(LAYER + "self_attn.k_norm", axis="key"),
)


def gated_mlp(after: str, *, optional: bool = False) -> tuple[Row, ...]:
    """Gate, up and down projections of an MLP that reads the norm `after`."""
    mlp = LAYER + "mlp."
    return (
        Linear(mlp + "gate_proj", "units", "residual", after, optional=optional),
        Linear(mlp + "up_proj", "products", "residual", after, optional=optional),
        Linear(mlp + "down_proj", "residual", "products", optional=optional),
    )


_DENSE: Final = ENDS + NORMS + ATTENTION + gated_mlp("post_attention_layernorm")

LLAMA: Final = Family(
    name="llama",
    model_types=("llama", "mistral", "qwen2"),
    embedding=EMBEDDING,
    head=HEAD,
    rows=_DENSE,
    shape=decoder_shape,
)

QWEN3: Final = Family(
    name="qwen3",
    model_types=("qwen3",),
    embedding=EMBEDDING,
    head=HEAD,
    rows=_DENSE + HEAD_NORMS,
    shape=decoder_shape,
)
