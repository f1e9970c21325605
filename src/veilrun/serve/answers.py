"""One answer, from checked tokens to what an application sees. No I/O.

Invariant: the texts of an answer's pieces add up to its text, its last piece and only that one
has a finish_reason, and `n_tokens` counts the tokens up to the one that ended it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from veilrun.serve.ask import Delta, Position, StopReason
from veilrun.serve.detokenise import Detokeniser
from veilrun.serve.stops import StopStrings
from veilrun.serve.text import TextSide, TokenText


@dataclass(frozen=True, slots=True)
class ShownToken:
    """One token of an answer with its log-probability and the alternatives, best first.

    offset_chars: where it begins in the answer's text.
    """

    token: TokenText
    logprob: float
    top: tuple[tuple[TokenText, float], ...]
    offset_chars: int


@dataclass(frozen=True, slots=True)
class Piece:
    """The next part of answer `index`. tokens: None when log-probabilities were not asked for."""

    index: int
    text: str
    finish_reason: StopReason | None
    tokens: tuple[ShownToken, ...] | None = None


class Answer:
    """Turns one answer's `Delta`s into `Piece`s."""

    def __init__(
        self,
        index: int,
        text_side: TextSide,
        detokeniser: Detokeniser,
        *,
        eos_token_ids: frozenset[int],
        stops: Sequence[str] = (),
        logprobs: bool = False,
    ) -> None:
        self._index = index
        self._text_side = text_side
        self._detokeniser = detokeniser
        self._eos_token_ids = eos_token_ids
        self._stops = StopStrings(stops) if stops else None
        self._logprobs = logprobs
        self._offset_chars = 0
        self.n_tokens = 0
        self.ended = False

    def feed(self, delta: Delta) -> Piece:
        """The piece that `delta` makes. Not to be called once the answer has ended."""
        ids = delta.ids
        self.n_tokens += len(ids)
        if delta.finish_reason == "stop" and ids and ids[-1] in self._eos_token_ids:
            ids = ids[:-1]  # the end id is counted, and is no part of the text
        if self._stops is None and not self._logprobs:
            text = self._detokeniser.feed(ids)
            if delta.finish_reason is None:
                return Piece(self._index, text, None)
            self.ended = True
            return Piece(self._index, text + self._detokeniser.flush(), delta.finish_reason)
        return self._token_by_token(ids, delta)

    def _token_by_token(self, ids: tuple[int, ...], delta: Delta) -> Piece:
        """Stop strings must say which token completed them, and offsets where each one began."""
        texts: list[str] = []
        shown: list[ShownToken] = []
        for place, token_id in enumerate(ids):
            if self._logprobs and delta.positions is not None:
                shown.append(self._shown(delta.positions[place]))
            new = self._detokeniser.feed((token_id,))
            self._offset_chars += len(new)
            texts.append(self._past_stops(new))
            if self.ended:
                self.n_tokens -= len(delta.ids) - place - 1
                return self._piece(texts, shown, "stop")
        if delta.finish_reason is None:
            return self._piece(texts, shown, None)
        texts.append(self._past_stops(self._detokeniser.flush()))
        if self.ended:
            return self._piece(texts, shown, "stop")
        self.ended = True
        if self._stops is not None:
            texts.append(self._stops.flush())
        return self._piece(texts, shown, delta.finish_reason)

    def _past_stops(self, text: str) -> str:
        if self._stops is None:
            return text
        safe, self.ended = self._stops.feed(text)
        return safe

    def _piece(self, texts: list[str], shown: list[ShownToken], reason: StopReason | None) -> Piece:
        tokens = tuple(shown) if self._logprobs else None
        return Piece(self._index, "".join(texts), reason, tokens)

    def _shown(self, position: Position) -> ShownToken:
        token_text = self._text_side.token_text
        return ShownToken(
            token=token_text(position.chosen.token_id),
            logprob=position.chosen.logprob,
            top=tuple((token_text(one.token_id), one.logprob) for one in position.top),
            offset_chars=self._offset_chars,
        )
