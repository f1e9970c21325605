"""Mixtral and Qwen3-MoE: a router chooses experts; experts and router rows change places.

Each expert has neurons, and so a key, of its own. Which experts serve together still shows.
"""

from __future__ import annotations

from typing import Final

from veilrun.equivariant.families.llama import (
    ATTENTION,
    EMBEDDING,
    ENDS,
    HEAD,
    HEAD_NORMS,
    LAYER,
    NORMS,
    gated_mlp,
)
from veilrun.equivariant.families.table import Family, Linear, Row, decoder_shape

_AFTER: Final = "post_attention_layernorm"


def _experts(module: str, gate: str, up: str, down: str) -> tuple[Row, ...]:
    expert = LAYER + module + "experts.{expert}."
    return (
        Linear(LAYER + module + "gate", "experts", "residual", _AFTER, optional=True),
        Linear(expert + gate, "units", "residual", _AFTER, optional=True),
        Linear(expert + up, "products", "residual", _AFTER, optional=True),
        Linear(expert + down, "residual", "products", optional=True),
    )


MIXTRAL: Final = Family(
    name="mixtral",
    model_types=("mixtral",),
    embedding=EMBEDDING,
    head=HEAD,
    rows=ENDS + NORMS + ATTENTION + _experts("block_sparse_moe.", "w1", "w3", "w2"),
    shape=decoder_shape,
)

QWEN3_MOE: Final = Family(
    name="qwen3_moe",
    model_types=("qwen3_moe",),
    embedding=EMBEDDING,
    head=HEAD,
    rows=(
        *ENDS,
        *NORMS,
        *ATTENTION,
        *HEAD_NORMS,
        *_experts("mlp.", "gate_proj", "up_proj", "down_proj"),
        *gated_mlp(_AFTER, optional=True),  # some layers may be dense
    ),
    shape=decoder_shape,
)
