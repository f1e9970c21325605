"""Gemma 2 and 3: gains stored as 1 + g, four norms a block, tied and scaled embeddings.

The two norms after attention and MLP write to the residual stream, so its group is the signed
permutations; in return nothing folds and the embedding stays tied. Soft caps, the embedding's
scale and the sliding window commute with every key.
"""

from __future__ import annotations

from typing import Final

from veilrun.equivariant.families.llama import (
    ATTENTION,
    EMBEDDING,
    HEAD,
    LAYER,
    gated_mlp,
)
from veilrun.equivariant.families.table import (
    Embedding,
    Family,
    HeadNorm,
    Linear,
    Norm,
    Row,
    decoder_shape,
)

_ROWS: Final[tuple[Row, ...]] = (
    Embedding(EMBEDDING, index="vocabulary"),
    Norm("model.norm", kind="rms+1"),
    Linear(HEAD, out="vocabulary", into="residual", after="model.norm"),
    Norm(LAYER + "input_layernorm", kind="rms+1"),
    Norm(LAYER + "post_attention_layernorm", kind="rms+1", carried=True),
    Norm(LAYER + "pre_feedforward_layernorm", kind="rms+1"),
    Norm(LAYER + "post_feedforward_layernorm", kind="rms+1", carried=True),
    *ATTENTION,
    *gated_mlp("pre_feedforward_layernorm"),
)

GEMMA2: Final = Family(
    name="gemma2",
    model_types=("gemma2",),
    embedding=EMBEDDING,
    head=HEAD,
    rows=_ROWS,
    shape=decoder_shape,
)

GEMMA3: Final = Family(
    name="gemma3",
    model_types=("gemma3_text",),
    embedding=EMBEDDING,
    head=HEAD,
    rows=(
        *_ROWS,
        HeadNorm(LAYER + "self_attn.q_norm", axis="query", kind="rms+1"),
        HeadNorm(LAYER + "self_attn.k_norm", axis="key", kind="rms+1"),
    ),
    shape=decoder_shape,
)
