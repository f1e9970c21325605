"""Phi-3: Llama with fused projections (query, key, value in one; gate and up in one)."""

from __future__ import annotations

from typing import Final

from veilrun.equivariant.families.llama import EMBEDDING, ENDS, HEAD, LAYER, NORMS
from veilrun.equivariant.families.table import Family, Linear, decoder_shape

PHI3: Final = Family(
    name="phi3",
    model_types=("phi3",),
    embedding=EMBEDDING,
    head=HEAD,
    rows=(
        *ENDS,
        *NORMS,
        Linear(
            LAYER + "self_attn.qkv_proj",
            out=("query", "key", "value"),
            into="residual",
            after="input_layernorm",
        ),
        Linear(LAYER + "self_attn.o_proj", out="residual", into="context"),
        Linear(
            LAYER + "mlp.gate_up_proj",
            out=("units", "products"),
            into="residual",
            after="post_attention_layernorm",
        ),
        Linear(LAYER + "mlp.down_proj", out="residual", into="products"),
    ),
    shape=decoder_shape,
)
