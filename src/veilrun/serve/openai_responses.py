"""What applications get back: OpenAI's objects, whole and as chunks of a stream.

A stream's chunks differ in a few places only, so what they share is written once per request:
a chunk costs one `json.dumps` of its text.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from veilrun.serve.answers import Piece, ShownToken

DONE: Final = b"data: [DONE]\n\n"

_LEAST_LOGPROB: Final = -9999.0
"""JSON has no infinity; OpenAI writes this for a token that cannot occur."""

_FINISH_REASONS: Final = {None: "null", "stop": '"stop"', "length": '"length"'}


@dataclass(frozen=True, slots=True)
class Head:
    """What all objects of one reply share. created_s: seconds since 1970."""

    reply_id: str
    created_s: int
    model: str


@dataclass(frozen=True, slots=True)
class Counts:
    """Tokens as the proxy counted them, in plain ids."""

    prompt_tokens: int
    completion_tokens: int

    def to_json(self) -> dict[str, int]:
        """OpenAI's `usage`."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }


class Shape(Protocol):
    """How one of the two endpoints writes its answers."""

    def opening(self, n_answers: int) -> bytes:
        """The chunks before the first text."""

    def chunk(self, piece: Piece) -> bytes:
        """The chunks of one piece; none for a piece that shows nothing."""

    def usage_chunk(self, counts: Counts) -> bytes:
        """The last chunk, where it was asked for."""

    def whole(self, answers: Iterable[Sequence[Piece]], counts: Counts) -> bytes:
        """The body of a reply that is not streamed."""


class ChatShape:
    """`/v1/chat/completions`."""

    def __init__(self, head: Head, *, include_usage: bool) -> None:
        self._head = head
        self._start, self._end = _frame(head, "chat.completion.chunk", include_usage)

    def opening(self, n_answers: int) -> bytes:
        delta = '{"role":"assistant","content":"","refusal":null}'
        return b"".join(self._event(index, delta, "null", None) for index in range(n_answers))

    def chunk(self, piece: Piece) -> bytes:
        logprobs = "null" if not piece.tokens else json.dumps(_chat_logprobs(piece.tokens))
        events = b""
        if piece.text or piece.tokens:
            events = self._event(
                piece.index, f'{{"content":{json.dumps(piece.text)}}}', logprobs, None
            )
        if piece.finish_reason is not None:
            events += self._event(piece.index, "{}", "null", piece.finish_reason)
        return events

    def usage_chunk(self, counts: Counts) -> bytes:
        return _usage_event(self._head, "chat.completion.chunk", counts)

    def whole(self, answers: Iterable[Sequence[Piece]], counts: Counts) -> bytes:
        choices = [
            {
                "index": pieces[-1].index,
                "message": {"role": "assistant", "content": _text(pieces), "refusal": None},
                "logprobs": None if tokens is None else _chat_logprobs(tokens),
                "finish_reason": pieces[-1].finish_reason,
            }
            for pieces in answers
            for tokens in (_tokens(pieces),)
        ]
        return _whole(self._head, "chat.completion", choices, counts)

    def _event(self, index: int, delta: str, logprobs: str, reason: str | None) -> bytes:
        return (
            f'{self._start}{{"index":{index},"delta":{delta},"logprobs":{logprobs},'
            f'"finish_reason":{_FINISH_REASONS[reason]}}}{self._end}'
        ).encode()


class CompletionShape:
    """`/v1/completions`."""

    def __init__(self, head: Head, *, include_usage: bool) -> None:
        self._head = head
        self._start, self._end = _frame(head, "text_completion", include_usage)

    def opening(self, n_answers: int) -> bytes:
        return b""

    def chunk(self, piece: Piece) -> bytes:
        if not (piece.text or piece.tokens or piece.finish_reason):
            return b""
        logprobs = "null" if not piece.tokens else json.dumps(_completion_logprobs(piece.tokens))
        return (
            f'{self._start}{{"index":{piece.index},"text":{json.dumps(piece.text)},'
            f'"logprobs":{logprobs},"finish_reason":{_FINISH_REASONS[piece.finish_reason]}}}'
            f"{self._end}"
        ).encode()

    def usage_chunk(self, counts: Counts) -> bytes:
        return _usage_event(self._head, "text_completion", counts)

    def whole(self, answers: Iterable[Sequence[Piece]], counts: Counts) -> bytes:
        choices = [
            {
                "index": pieces[-1].index,
                "text": _text(pieces),
                "logprobs": None if tokens is None else _completion_logprobs(tokens),
                "finish_reason": pieces[-1].finish_reason,
            }
            for pieces in answers
            for tokens in (_tokens(pieces),)
        ]
        return _whole(self._head, "text_completion", choices, counts)


def _frame(head: Head, kind: str, include_usage: bool) -> tuple[str, str]:
    """What stands before and after the one choice of every chunk."""
    shared = _shared(head, kind)
    start = "data: " + json.dumps(shared)[:-1] + ', "choices":['
    # With usage asked for, OpenAI's chunks before the last one say that theirs is null.
    return start, ("]" + (',"usage":null' if include_usage else "") + "}\n\n")


def _usage_event(head: Head, kind: str, counts: Counts) -> bytes:
    body = {**_shared(head, kind), "choices": [], "usage": counts.to_json()}
    return f"data: {json.dumps(body)}\n\n".encode()


def _whole(head: Head, kind: str, choices: list[dict[str, Any]], counts: Counts) -> bytes:
    return json.dumps(
        {**_shared(head, kind), "choices": choices, "usage": counts.to_json()}
    ).encode()


def _shared(head: Head, kind: str) -> dict[str, Any]:
    return {"id": head.reply_id, "object": kind, "created": head.created_s, "model": head.model}


def _text(pieces: Sequence[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


def _tokens(pieces: Sequence[Piece]) -> list[ShownToken] | None:
    if all(piece.tokens is None for piece in pieces):
        return None
    return [token for piece in pieces for token in piece.tokens or ()]


def _finite(logprob: float) -> float:
    return max(logprob, _LEAST_LOGPROB)


def _chat_logprobs(tokens: Iterable[ShownToken]) -> dict[str, Any]:
    content = [
        {
            "token": one.token.text,
            "logprob": _finite(one.logprob),
            "bytes": one.token.raw,
            "top_logprobs": [
                {"token": token.text, "logprob": _finite(logprob), "bytes": token.raw}
                for token, logprob in one.top
            ],
        }
        for one in tokens
    ]
    return {"content": content, "refusal": None}


def _completion_logprobs(tokens: Sequence[ShownToken]) -> dict[str, Any]:
    return {
        "tokens": [one.token.text for one in tokens],
        "token_logprobs": [_finite(one.logprob) for one in tokens],
        "top_logprobs": [
            {token.text: _finite(logprob) for token, logprob in one.top} for one in tokens
        ],
        "text_offset": [one.offset_chars for one in tokens],
    }
