"""The words of a family's table. A table is data: nothing else knows an architecture.

A row names a module of the checkpoint, with `{layer}` and `{expert}` for numbers, and says
which space each axis of its parameters belongs to. `after` names the norm whose output a
module reads: the norm's gain and bias fold into it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

AxisName = Literal[
    "vocabulary",
    "residual",
    "query",
    "key",
    "value",
    "context",  # the heads' outputs, concatenated: what the output projection reads
    "units",  # what an elementwise non-linearity acts on, one by one
    "products",  # units times a linear branch, and that branch itself
    "experts",
    "position",  # counted by the engine, so it stays as it is
]


@dataclass(frozen=True, slots=True)
class PerHead:
    """Axes stored interleaved: head 0 of each, then head 1 of each, and so on."""

    axes: tuple[AxisName, ...]


Axis = AxisName | tuple[AxisName, ...] | PerHead
"""One space; several side by side (fused projections); or several interleaved by head."""


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear module: `.weight` [out, into], perhaps `.bias` [out].

    after: the norm whose output it reads, in the same layer unless named in full.
    transposed: the weight is stored [into, out], as GPT-2's Conv1D does.
    optional: not every configuration has it.
    """

    name: str
    out: Axis
    into: Axis
    after: str | None = None
    transposed: bool = False
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Embedding:
    """A table that writes to the residual stream: `.weight` [index, residual]."""

    name: str
    index: AxisName


@dataclass(frozen=True, slots=True)
class Norm:
    """A norm over the residual stream.

    kind: `rms`, gain g; `rms+1`, gain 1 + g (Gemma); `layer`, gain and bias.
    carried: its output goes into the residual stream, not into a linear module, so the gain
        cannot fold away and the stream's group shrinks to signed permutations.
    """

    name: str
    kind: Literal["rms", "rms+1", "layer"]
    carried: bool = False

    def is_called(self, after: str | None) -> bool:
        """Whether a row's `after` means this norm: in full, or by its last word."""
        return after is not None and f".{self.name}".endswith(f".{after}")


@dataclass(frozen=True, slots=True)
class HeadNorm:
    """A norm over each head's query or key, one gain vector [head_dim] for all heads.

    kind: `rms`, gain g; `rms+1`, gain 1 + g.
    """

    name: str
    axis: Literal["query", "key"]
    kind: Literal["rms", "rms+1"] = "rms"


@dataclass(frozen=True, slots=True)
class Buffer:
    """A constant that old checkpoints store and engines recompute: dropped."""

    name: str


Row = Linear | Embedding | Norm | HeadNorm | Buffer


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes that a configuration gives the spaces. rotary_dim 0: no rotary positions."""

    n_layers: int
    hidden: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    rotary_dim: int
    vocab_size: int
    n_experts: int = 0


@dataclass(frozen=True, slots=True)
class Family:
    """One architecture.

    name: also a word of every key label, so it never changes.
    model_types: the `model_type` values of config.json that it serves.
    head, embedding: the module that reads out the vocabulary, and the one it may be tied to.
    prefix: what some checkpoints leave off the front of their parameter names.
    shape: reads the sizes from a transformers configuration object.
    """

    name: str
    model_types: tuple[str, ...]
    embedding: str
    head: str
    rows: tuple[Row, ...]
    shape: Callable[[Any], Shape]
    prefix: str = ""

    @property
    def centres(self) -> bool:
        """Whether its norms subtract the mean, so that the all-ones vector must stay in place."""
        return any(isinstance(row, Norm) and row.kind == "layer" for row in self.rows)

    @property
    def has_head_norms(self) -> bool:
        """Whether queries and keys are normalised."""
        return any(isinstance(row, HeadNorm) for row in self.rows)

    @property
    def carries(self) -> bool:
        """Whether some norm's gain goes on into the residual stream."""
        return any(isinstance(row, Norm) and row.carried for row in self.rows)

    @property
    def reads_rows(self) -> bool:
        """Whether all of the model between embedding and head is a function of the embedding's
        rows alone, with RMSNorms that linear modules read.
        """
        # Gemma scales the rows, and caps the head's scores; the others number the positions.
        return all(
            row.kind == "rms" and not row.carried for row in self.rows if isinstance(row, Norm)
        )

    def __post_init__(self) -> None:
        read = {row.after for row in self.rows if isinstance(row, Linear)} - {None}
        for row in self.rows:
            if isinstance(row, Norm) and row.carried == any(row.is_called(name) for name in read):
                raise ValueError(f"{row.name}: a norm is either read by a module or carried on")


def decoder_shape(config: Any) -> Shape:
    """The sizes in the words that most decoder configurations share."""
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return Shape(
        n_layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        n_heads=config.num_attention_heads,
        n_kv_heads=getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
        head_dim=head_dim,
        rotary_dim=rotary_dim(config, head_dim),
        vocab_size=config.vocab_size,
        n_experts=int(
            getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None) or 0
        ),
    )


def rotary_dim(config: Any, head_dim: int) -> int:
    """Entries of each head that carry rotary positions: whole pairs, as engines count them."""
    parameters = getattr(config, "rope_parameters", None) or {}
    share = parameters.get("partial_rotary_factor")
    return 2 * math.ceil(int(head_dim * (1.0 if share is None else share)) / 2)
