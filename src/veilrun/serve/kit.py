"""What the proxy needs of others: the shape of a client kit, of its codec and of a node's client.

`veilrun.equivariant` provides both; the proxy depends on their shape alone, so that a mode
with another way to hide ids is served by the same code.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Protocol

from veilrun.serve.ask import Ask, Delta
from veilrun.wire.manifest import NodeCard


class IdCodec(Protocol):
    """Plain token ids to cipher ids and back, under one key and for one model."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def fingerprint(self) -> str: ...
    def encode(self, ids: Sequence[int], /) -> tuple[int, ...]:
        """Plain to cipher. Raises UsageError on an id outside the vocabulary."""

    def decode(self, ids: Sequence[int], /) -> tuple[int, ...]:
        """Cipher to plain. Raises VerificationError on an id outside the vocabulary."""


class Node(Protocol):
    """The way to one node, whichever part of the model it serves."""

    async def card(self) -> NodeCard:
        """Its card, once it is known to serve what our key encrypted."""

    def stream(self, ask: Ask) -> AsyncGenerator[list[Delta]]:
        """The answers' next tokens as they come; closing the generator stops the node."""

    async def complete(self, ask: Ask) -> list[Delta]:
        """The whole answers."""


class Kit(Protocol):
    """What `veilrun encrypt` left beside the key for one model.

    name: the model's name as applications see it.
    max_model_len: prompt and answer together, in tokens.
    eos_token_ids: plain ids that end an answer.
    tokenizer_folder: tokenizer files and chat template.
    ends_file: embedding and head, where the node has neither; else None.
    """

    @property
    def name(self) -> str: ...
    @property
    def codec(self) -> IdCodec: ...
    @property
    def max_model_len(self) -> int: ...
    @property
    def eos_token_ids(self) -> tuple[int, ...]: ...
    @property
    def tokenizer_folder(self) -> Path: ...
    @property
    def ends_file(self) -> Path | None: ...
