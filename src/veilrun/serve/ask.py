"""What the proxy asks of a node and hears back, in plain ids. Values; they never leave here.

Plain and cipher ids are both whole numbers, so they live in different types: an `Ask` becomes
a `wire.GenerateRequest` in one place only (`node_client.seal`), and a node's answer becomes
`Delta`s in one place only (`node_answers`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

StopReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to choose tokens; names and meanings are those of `wire.SamplingParams`.

    logit_bias: *plain* id -> value added to its logit.
    logprobs: None, or how many alternatives to report per position.
    ignore_eos: the model's end ids do not end the answer.
    """

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    min_tokens: int = 0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    ignore_eos: bool = False
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class Ask:
    """One prompt in plain ids, and how to answer it in at most `max_tokens` tokens."""

    prompt_ids: tuple[int, ...]
    max_tokens: int
    sampling: Sampling

    def __repr__(self) -> str:  # a prompt must not reach a log
        return f"Ask(n_prompt_tokens={len(self.prompt_ids)}, max_tokens={self.max_tokens})"


@dataclass(frozen=True, slots=True)
class Likelihood:
    """The natural log-probability of one plain id."""

    token_id: int
    logprob: float


@dataclass(frozen=True, slots=True)
class Position:
    """The chosen token of one position and the most likely alternatives, best first."""

    chosen: Likelihood
    top: tuple[Likelihood, ...]


@dataclass(frozen=True, slots=True)
class Delta:
    """The next plain tokens of answer `index`, already checked.

    finish_reason: None while the answer goes on.
    positions: one per id, or None when no log-probabilities were asked for.
    """

    index: int
    ids: tuple[int, ...]
    finish_reason: StopReason | None
    positions: tuple[Position, ...] | None = None

    def __repr__(self) -> str:  # an answer must not reach a log
        return f"Delta(index={self.index}, n_ids={len(self.ids)}, {self.finish_reason=})"
