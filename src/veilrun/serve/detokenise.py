"""Token ids to text, piece by piece, for any decoder of the `tokenizers` library.

The library's own `DecodeStream` is not used: it cannot give out what it holds at the end, and
it raises on byte sequences that a sampled answer may well contain ("Invalid prefix").

Invariant: for any ids, what `feed` and `flush` return adds up to `decode(prompt + ids)` less
`decode(prompt)`, with special tokens skipped, whatever the grouping of the ids. Only a
character that more tokens may complete is held back, and the work per id is bounded.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer

_CONTEXT_IDS = 5
"""Ids kept in front of new ones. One would do for the space that a decoder strips from the
very first token; a UTF-8 decoder is back in step after four bytes, hence four ids and one."""

_WINDOW_IDS = 10
"""The window is cut back to its context beyond this many ids. Cutting costs one decode, a long
window costs time in every decode: this is near the minimum of the sum."""

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"

_SILENT, _TEXT, _BYTE = 0, 1, 2


class Vocabulary:
    """Which ids print, and which are single bytes, for one tokenizer.

    A run of byte tokens (`<0xE4>`) is decoded as a whole: if any byte of it does not fit, the
    library shows every byte as unknown. So the text of a run is settled only at its end.
    """

    def __init__(self, backend: Tokenizer) -> None:
        self.backend = backend
        self.byte_level = "ByteLevel" in _decoder_types(backend)
        self.byte_fallback = byte_fallback = "ByteFallback" in _decoder_types(backend)
        tokens: dict[str, int] = backend.get_vocab(with_added_tokens=True)
        self._kinds = bytearray(max(tokens.values(), default=0) + 1)
        for token, token_id in tokens.items():
            self._kinds[token_id] = _BYTE if byte_fallback and byte_of(token) is not None else _TEXT
        for token_id, added in backend.get_added_tokens_decoder().items():
            if added.special:
                self._kinds[token_id] = _SILENT

    def kind(self, token_id: int) -> int:
        """`_SILENT` for special tokens and for ids that the tokenizer does not know."""
        return self._kinds[token_id] if token_id < len(self._kinds) else _SILENT

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, none of which is silent."""
        text: str = self.backend.decode(ids, skip_special_tokens=False)
        return text


class Detokeniser:
    """The text of one answer.

    prompt_ids: what the answer's text continues; () for a text of its own.
    prompt_is_text: the prompt was encoded from text, so it ends with a whole character. Ids
        from elsewhere may not: the answer's text then begins with the character they began.
    """

    __slots__ = ("_given", "_ids", "_last_kind", "_vocabulary")

    def __init__(
        self,
        vocabulary: Vocabulary,
        prompt_ids: Sequence[int] = (),
        *,
        prompt_is_text: bool = True,
    ) -> None:
        self._vocabulary = vocabulary
        self._ids = _tail(vocabulary, prompt_ids)
        self._last_kind = vocabulary.kind(self._ids[-1]) if self._ids else _TEXT
        text = vocabulary.decode(self._ids)
        self._given = len(text if prompt_is_text else text.rstrip(_UNFINISHED))

    def feed(self, ids: Sequence[int]) -> str:
        """The text that `ids` add and that no later id can change."""
        kind_of = self._vocabulary.kind
        added = False
        for token_id in ids:
            kind = kind_of(token_id)
            if kind != _SILENT:
                self._ids.append(token_id)
                self._last_kind = kind
                added = True
        if not added or self._last_kind == _BYTE:
            return ""
        text = self._vocabulary.decode(self._ids)
        # A decoder shows an unfinished character as one replacement character at the end.
        settled = len(text) - text.endswith(_UNFINISHED)
        new, self._given = text[self._given : settled], max(self._given, settled)
        if len(self._ids) > _WINDOW_IDS:
            self._cut(unsettled=len(text) - self._given)
        return new

    def flush(self) -> str:
        """The rest, when no more ids come: an unfinished character as replacement characters."""
        text = self._vocabulary.decode(self._ids)
        new, self._given = text[self._given :], max(self._given, len(text))
        return new

    def _cut(self, unsettled: int) -> None:
        self._ids = self._ids[-_CONTEXT_IDS:]
        self._given = max(0, len(self._vocabulary.decode(self._ids)) - unsettled)


def byte_of(token: str) -> int | None:
    """The byte that a byte-fallback token such as `<0xE4>` stands for."""
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        try:
            return int(token[3:5], 16)
        except ValueError:
            return None
    return None


def _tail(vocabulary: Vocabulary, prompt_ids: Sequence[int]) -> list[int]:
    """The prompt's last printing ids; a run of bytes is not cut, its bytes count together."""
    tail: list[int] = []
    for token_id in reversed(prompt_ids):
        kind = vocabulary.kind(token_id)
        if kind == _SILENT:
            continue
        tail.append(token_id)
        if len(tail) >= _CONTEXT_IDS and kind != _BYTE:
            break
    return tail[::-1]


def _decoder_types(backend: Tokenizer) -> set[str]:
    """The names of the decoders in the tokenizer's decoder chain."""
    if backend.decoder is None:
        return set()
    state: dict[str, Any] = json.loads(backend.decoder.__getstate__())
    return {one["type"] for one in (state, *state.get("decoders", ()))}
