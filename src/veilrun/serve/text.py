"""The tokenizer side: chat templates, text to ids, ids to text. All of it is on this machine.

Only files of the given folder are read, nothing is fetched, and no code that a model brings
along is run (`trust_remote_code` is off).

Invariant: a client's messages can only cause a `RequestFault`; any ids can be turned into text.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from jinja2.exceptions import TemplateError

from veilrun.errors import CheckpointError, UsageError
from veilrun.serve.detokenise import Detokeniser, Vocabulary, byte_of
from veilrun.serve.openai_errors import RequestFault

_LONG_TEXT_CHARS: Final = 20_000
"""Longer texts are encoded in a thread: they take milliseconds, and others are streaming."""

_TEMPLATE_FAULTS: Final = (
    TemplateError,
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    ArithmeticError,
)
"""A template is a program by the model's author: what it raises on odd messages is up to it."""


@dataclass(frozen=True, slots=True)
class TokenText:
    """How one token is shown in log-probabilities: `raw` are its bytes of the answer's text."""

    text: str
    raw: tuple[int, ...]


class TextSide:
    """One model's tokenizer: `load_text_side` opens it."""

    def __init__(self, tokenizer: Any, model: str) -> None:
        self._tokenizer = tokenizer
        self._backend = tokenizer.backend_tokenizer
        # A tokenizer.json may ask for padding or truncation, which would change the prompt.
        self._backend.no_padding()
        self._backend.no_truncation()
        self._vocabulary = Vocabulary(self._backend)
        self._anchor = self._backend.encode("a", add_special_tokens=False).ids
        self._anchor_chars = len(self._vocabulary.decode(self._anchor))
        self._shown: dict[int, TokenText] = {}
        self._model = model

    async def chat_ids(self, messages: Sequence[dict[str, str]]) -> tuple[int, ...]:
        """The prompt that the model's own chat template makes of a conversation.

        Raises:
            RequestFault: the model has no template, or the template refuses the messages.
        """
        if not self._tokenizer.chat_template:
            raise RequestFault(
                f"{self._model} has no chat template, so it cannot chat; use /v1/completions",
                param="messages",
            )
        try:
            text = self._tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=True
            )
        except _TEMPLATE_FAULTS as error:
            raise RequestFault(
                f"the model's chat template refuses these messages: {error}", param="messages"
            ) from error
        return await self._encode(text, add_special_tokens=False)

    async def prompt_ids(self, text: str) -> tuple[int, ...]:
        """A plain prompt with the special tokens that the tokenizer puts around one."""
        return await self._encode(text, add_special_tokens=True)

    def detokeniser(
        self, prompt_ids: Sequence[int] = (), *, prompt_is_text: bool = True
    ) -> Detokeniser:
        """For one answer; see `Detokeniser`."""
        return Detokeniser(self._vocabulary, prompt_ids, prompt_is_text=prompt_is_text)

    def token_text(self, token_id: int) -> TokenText:
        """How log-probabilities show a token: its text and bytes inside a longer text."""
        shown = self._shown.get(token_id)
        if shown is None:
            shown = self._shown[token_id] = self._token_text(token_id)
        return shown

    async def _encode(self, text: str, *, add_special_tokens: bool) -> tuple[int, ...]:
        if len(text) <= _LONG_TEXT_CHARS:
            return tuple(self._backend.encode(text, add_special_tokens=add_special_tokens).ids)
        # `encode_batch` lets other threads run while it works; `encode` does not.
        (encoding,) = await asyncio.to_thread(
            self._backend.encode_batch, [text], add_special_tokens=add_special_tokens
        )
        return tuple(encoding.ids)

    def _token_text(self, token_id: int) -> TokenText:
        token: str | None = self._backend.id_to_token(token_id)
        if token is None:
            return TokenText("", ())
        raw = self._token_bytes(token_id, token)
        try:
            return TokenText(raw.decode(), tuple(raw))
        except UnicodeDecodeError:  # part of a character: shown the way OpenAI shows it
            return TokenText("bytes:" + "".join(f"\\x{one:02x}" for one in raw), tuple(raw))

    def _token_bytes(self, token_id: int, token: str) -> bytes:
        if self._vocabulary.byte_level and all(char in _BYTE_OF_CHAR for char in token):
            return bytes(_BYTE_OF_CHAR[char] for char in token)
        byte = byte_of(token)
        if byte is not None and self._vocabulary.byte_fallback:
            return bytes((byte,))
        # Behind another token, because a decoder may strip the space in front of the first.
        return self._vocabulary.decode([*self._anchor, token_id])[self._anchor_chars :].encode()


def load_text_side(folder: Path, model: str) -> TextSide:
    """Open the tokenizer in `folder`; `model` is its name in error texts.

    Raises:
        CheckpointError: the folder has no tokenizer that loads.
        UsageError: the model has only a slow tokenizer, written in Python.
    """
    # Imported here: it takes seconds, and a command line that is used wrongly should say so now.
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False, use_fast=True
        )
    except (OSError, ValueError, LookupError, TypeError, ImportError) as error:
        raise CheckpointError(f"no tokenizer loads from {folder}: {error}") from error
    if not getattr(tokenizer, "is_fast", False):
        raise UsageError(
            f"{model} has a slow tokenizer ({type(tokenizer).__name__}); veilrun needs a "
            "tokenizer.json, which transformers' save_pretrained writes for fast tokenizers"
        )
    return TextSide(tokenizer, model)


def _byte_level_alphabet() -> dict[str, int]:
    """Byte-level BPE writes byte b as a printable character: itself, or one from 256 upwards."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(256 + index): byte for index, byte in enumerate(others)
    }


_BYTE_OF_CHAR: Final = _byte_level_alphabet()
