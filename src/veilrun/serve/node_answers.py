"""Everything a node says in answer to one request, checked and turned into plain ids. No I/O.

Covered: bytes that are no server-sent events, endless lines, chunks that do not parse, ids
outside the vocabulary, answers nobody asked for, more tokens than asked for, tokens after
the end, log-probabilities that do not fit the tokens, an answer that never ends properly.
Not covered: tokens that the model would not have chosen. A node can lie about those.

Invariant: the node's bytes become `Delta`s within what was asked, or raise a `PeerError`, or
a `TransportError` where the node says that it is going down.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final

from veilrun.errors import DecodeError, PeerError, TransportError, VerificationError
from veilrun.serve.ask import Ask, Delta, Likelihood, Position
from veilrun.serve.kit import IdCodec
from veilrun.wire.generate import Choice, PositionLogprobs, TokenLogprob, decode_response

MAX_LINE_BYTES: Final = 4 * 2**20
"""One event: a node may send many tokens with 20 alternatives each at once."""

MAX_WHOLE_BYTES: Final = 16 * 2**20
"""An answer in one piece; one that could be longer is asked for as a stream. Reading it holds
about ten times as much memory, and everybody else's stream for a second at most."""

_TOKEN_BYTES: Final = 24
_LOGPROB_BYTES: Final = 160
_FIXED_BYTES: Final = 2**18
"""Room per token, per reported log-probability, and for all else in a whole answer's JSON."""

_DONE: Final = b"[DONE]"


class NodeRefusal(PeerError):
    """The node will not serve this request (status 400); the next one may be to its liking."""


def max_body_bytes(ask: Ask) -> int:
    """The most a whole answer to `ask` can need; beyond MAX_WHOLE_BYTES, ask for a stream."""
    alternatives = ask.sampling.logprobs
    logprobs = 0 if alternatives is None else (alternatives + 2) * _LOGPROB_BYTES
    return _FIXED_BYTES + ask.sampling.n * ask.max_tokens * (_TOKEN_BYTES + logprobs)


class EventReader:
    """Server-sent events: bytes in as they come, the `data` of each event out."""

    __slots__ = ("_line",)

    def __init__(self) -> None:
        self._line = bytearray()  # grows in place: a line may come in thousands of packets

    def feed(self, data: bytes) -> list[bytes]:
        """The events that are complete now. Comments keep a connection alive and are skipped."""
        *ends, rest = data.split(b"\n")
        events = []
        for end in ends:
            self._add(end)
            line = bytes(self._line)
            self._line.clear()
            if line.startswith(b"data:"):
                events.append(line[5:].strip())
            elif line.strip() and not line.startswith(b":"):
                raise DecodeError("the stream is not made of server-sent events")
        self._add(rest)
        return events

    def _add(self, part: bytes) -> None:
        if len(self._line) + len(part) > MAX_LINE_BYTES:
            raise DecodeError(f"a line of the stream has more than {MAX_LINE_BYTES} bytes")
        self._line += part


class AnswerReader:
    """The answers to one `Ask`: what came so far, and whether what comes next may."""

    def __init__(self, ask: Ask, codec: IdCodec) -> None:
        self._codec = codec
        self._max_tokens = ask.max_tokens
        self._alternatives = ask.sampling.logprobs
        self._n_tokens = [0] * ask.sampling.n
        self._open = set(range(ask.sampling.n))

    @property
    def complete(self) -> bool:
        """Every answer has ended."""
        return not self._open

    def events(self, events: Sequence[bytes]) -> list[Delta]:
        """Read a stream's next events, up to the one that completes the last answer."""
        deltas: list[Delta] = []
        for event in events:
            if not self._open:
                break
            if event == _DONE:
                raise PeerError(f"the node left {len(self._open)} answers unfinished")
            deltas += self._read(event)
        return deltas

    def whole(self, body: bytes) -> list[Delta]:
        """Read an answer that came in one piece."""
        deltas = self._read(body)
        if self._open:
            raise PeerError(f"the node left {len(self._open)} answers unfinished")
        return deltas

    def _read(self, body: bytes) -> list[Delta]:
        try:
            response = decode_response(body, max_choices=len(self._n_tokens))
        except DecodeError:
            reason = _reported_error(body)
            if reason is None:
                raise
            raise PeerError(f"the node gave up: {reason}") from None
        # A choice without news would pass for progress.
        news = (one for one in response.choices if one.token_ids or one.finish_reason)
        return [self._delta(choice) for choice in news]

    def _delta(self, choice: Choice) -> Delta:
        index, n_new = choice.index, len(choice.token_ids)
        if index not in self._open:
            raise VerificationError(f"the node added to answer {index}, which is not open")
        n_tokens = self._n_tokens[index] = self._n_tokens[index] + n_new
        if n_tokens > self._max_tokens:
            raise VerificationError(f"the node sent {n_tokens} tokens, asked {self._max_tokens}")
        ids = self._codec.decode(choice.token_ids)
        reason = choice.finish_reason
        if reason == "abort":
            raise TransportError("the node aborted the answer, as it does when it shuts down")
        if reason is not None:
            self._open.remove(index)
        positions = None
        if self._alternatives is not None and n_new:
            if choice.logprobs is None:
                raise VerificationError("the node left out the log-probabilities")
            positions = tuple(map(self._position, ids, choice.logprobs, choice.token_ids))
        return Delta(index, ids, reason, positions)

    def _position(self, plain_id: int, given: PositionLogprobs, cipher_id: int) -> Position:
        if given.chosen.token_id != cipher_id:
            raise VerificationError("the node's log-probabilities are of other tokens")
        # An engine may add the chosen token to the alternatives that were asked for.
        asked = given.top[: self._alternatives]
        top_ids = self._codec.decode([one.token_id for one in asked])
        return Position(
            _likelihood(plain_id, given.chosen), tuple(map(_likelihood, top_ids, asked))
        )


def _likelihood(plain_id: int, given: TokenLogprob) -> Likelihood:
    return Likelihood(plain_id, given.logprob)


def printable(text: object, limit: int = 200) -> str:
    """What a node wrote, fit for an error message: short, and no control characters."""
    return "".join(one if one.isprintable() else "?" for one in str(text)[:limit])


def _reported_error(body: bytes) -> str | None:
    """The message of an OpenAI-shaped error, which engines also send inside streams."""
    try:
        error = json.loads(body)["error"]
        return printable(error["message"])
    except (ValueError, LookupError, TypeError, RecursionError):
        return None


def reported_error(body: bytes) -> str:
    """The node's reason for refusing, or a stand-in."""
    return _reported_error(body) or "no reason given"
