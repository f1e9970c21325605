"""What the proxy needs of the trusted side's files: the shape of a client kit and its codec.

`veilrun.equivariant` provides both; the proxy depends on their shape alone, so that a mode
with another way to hide ids is served by the same code.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol


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


class Kit(Protocol):
    """What `veilrun encrypt` left beside the key for one model.

    name: the model's name as applications see it.
    max_model_len: prompt and answer together, in tokens.
    eos_token_ids: plain ids that end an answer.
    tokenizer_folder: tokenizer files and chat template.
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
