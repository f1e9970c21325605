"""What of a model decides its speed, read from its configuration alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Shape:
    """family: a word for people; selectors see the numbers.

    n_kv_heads: of keys and values; fewer than heads where groups share them.
    gated: the MLP has three matrices, not two.
    head_width: of one head; None: hidden / n_heads.
    feed_forward: of the MLP, or of one expert. n_experts: that one token meets in a layer.
    linear: layers are torch's `Linear`, which 8-bit weights are made of; else only the head is.
    """

    family: str
    n_layers: int
    hidden: int
    n_heads: int
    n_kv_heads: int
    feed_forward: int
    vocab_size: int
    gated: bool
    linear: bool = True
    head_width: int | None = None
    n_experts: int = 1

    @property
    def n_body_params(self) -> int:
        """Weights of the layers' matrices that one token meets."""
        head = self.head_width or self.hidden // self.n_heads
        attention = self.hidden * head * (2 * self.n_heads + 2 * self.n_kv_heads)
        return self.n_layers * (attention + self._mlp_params)

    @property
    def _mlp_params(self) -> int:
        return self.n_experts * self.hidden * self.feed_forward * (3 if self.gated else 2)

    @property
    def n_head_params(self) -> int:
        """Weights of the head, read once for every token."""
        return self.hidden * self.vocab_size

    @property
    def n_linear_params(self) -> int:
        """Weights that 8-bit arithmetic reaches; experts are not torch's `Linear`."""
        experts = self.n_layers * self._mlp_params if self.n_experts > 1 else 0
        return self.n_head_params + (self.n_body_params - experts if self.linear else 0)

    def features(self) -> dict[str, float]:
        """What a selector sees."""
        return {
            "log_n_layers": math.log2(self.n_layers),
            "log_hidden": math.log2(self.hidden),
            "log_body_params": math.log2(self.n_body_params),
            "log_head_params": math.log2(self.n_head_params),
            "kv_share": self.n_kv_heads / self.n_heads,
            "linear_share": self.n_linear_params / (self.n_body_params + self.n_head_params),
            "log_weights_per_step": math.log2(
                (self.n_body_params + self.n_head_params) / self.n_layers
            ),
        }

    def describe(self) -> str:
        """The model in a sentence."""
        n_params = (self.n_body_params + self.n_head_params) / 1e6
        return (
            f"a {self.family} model of {n_params:.1f} million weights: {self.n_layers} layers, "
            f"hidden size {self.hidden}, {self.n_heads} heads, {self.vocab_size} ids"
        )


def read(config: Any) -> Shape:
    """The shape in a transformers configuration of a text model."""
    hidden = int(config.hidden_size)
    n_heads = int(config.num_attention_heads)
    widths = (
        getattr(config, name, None)
        for name in ("moe_intermediate_size", "intermediate_size", "n_inner")
    )
    feed_forward = next(filter(None, widths), None)
    return Shape(
        family=str(config.model_type),
        n_layers=int(config.num_hidden_layers),
        hidden=hidden,
        n_heads=n_heads,
        n_kv_heads=int(getattr(config, "num_key_value_heads", None) or n_heads),
        feed_forward=int(feed_forward or 4 * hidden),
        vocab_size=int(config.vocab_size),
        head_width=getattr(config, "head_dim", None),
        gated=config.model_type not in _UNGATED,
        linear=config.model_type != "gpt2",
        n_experts=int(getattr(config, "num_experts_per_tok", None) or 1),
    )


_UNGATED = frozenset({"gpt2", "gpt_neox", "gptj", "opt", "phi", "starcoder2"})
