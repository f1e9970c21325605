"""What the node's HTTP surface needs of an engine. Engines know ids and weights, never text.

Invariant: a request that reaches `generate` has passed `admit`, so its ids are in range and
its lengths fit: one id outside the vocabulary would end every request in flight.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Protocol

from veilrun.errors import UsageError
from veilrun.wire.generate import Choice, GenerateRequest


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """vocab_size: ids are below it. max_model_len: prompt and answer together, in tokens.

    max_n: answers per request.
    """

    vocab_size: int
    max_model_len: int
    max_n: int = 16


class Engine(Protocol):
    """A stock engine that serves one encrypted checkpoint."""

    name: str
    limits: EngineLimits

    @property
    def ready(self) -> bool:
        """Whether it can answer now; False before `start`, after `stop`, and while broken."""

    async def start(self) -> None:
        """Load the model; return when it can answer."""

    async def stop(self) -> None:
        """Free the model. Requests still running end with finish_reason "abort"."""

    def generate(self, request: GenerateRequest) -> AsyncGenerator[Choice]:
        """Yield each answer's next tokens as they come; the last of each has a finish_reason.

        Closing the generator stops the request in the engine. If the engine breaks, answers
        that have begun end with finish_reason "abort"; before that, BusyError is raised.
        """


def admit(request: GenerateRequest, limits: EngineLimits) -> None:
    """Refuse what would stop the engine or cannot be answered.

    Raises:
        UsageError: an id outside the vocabulary, a prompt that leaves no room, too many answers.
    """
    params = request.sampling_params
    named_ids = {
        "token_ids": request.token_ids,
        "stop_token_ids": params.stop_token_ids,
        "logit_bias": tuple(params.logit_bias),
    }
    for name, ids in named_ids.items():
        if ids and max(ids) >= limits.vocab_size:
            raise UsageError(f"{name}: {max(ids)} is outside the vocabulary of {limits.vocab_size}")
    if len(request.token_ids) >= limits.max_model_len:
        raise UsageError(
            f"token_ids: {len(request.token_ids)} tokens leave no room for an answer within "
            f"{limits.max_model_len}"
        )
    if params.n > limits.max_n:
        raise UsageError(f"n: {params.n} answers asked, the limit is {limits.max_n}")
