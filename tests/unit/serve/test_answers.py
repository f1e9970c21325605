"""One answer from tokens to pieces: what adds up, what is counted, where it ends."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from veilrun.serve.answers import Answer
from veilrun.serve.ask import Delta, Likelihood, Position
from veilrun.serve.detokenise import Detokeniser, Vocabulary
from veilrun.serve.openai_responses import ChatShape, CompletionShape, Counts, Head
from veilrun.serve.text import TokenText

EOS = 4
TOKENS = ["a", "b", "ab", "c", "</s>"]


@cache
def vocabulary() -> Vocabulary:
    tokenizer = Tokenizer(models.WordLevel({one: place for place, one in enumerate(TOKENS)}, "c"))
    tokenizer.add_special_tokens(["</s>"])
    tokenizer.decoder = decoders.Fuse()
    return Vocabulary(tokenizer)


class Texts:
    """The part of a text side that answers need."""

    def token_text(self, token_id: int) -> TokenText:
        return TokenText(TOKENS[token_id], tuple(TOKENS[token_id].encode()))


def answer(*stops: str, logprobs: bool = False) -> Answer:
    return Answer(
        0,
        Texts(),  # type: ignore[arg-type]
        Detokeniser(vocabulary()),
        eos_token_ids=frozenset([EOS]),
        stops=stops,
        logprobs=logprobs,
    )


def delta(*ids: int, reason=None) -> Delta:
    return Delta(0, ids, reason, tuple(Position(Likelihood(one, -1.0), ()) for one in ids))


def first_stop(ids: list[int], stops: list[str]) -> tuple[str, int] | None:
    """The text before the first stop string and the number of tokens up to its end."""
    text = ""
    for place, one in enumerate(ids):
        for char in TOKENS[one]:
            text += char
            ends = [stop for stop in stops if text.endswith(stop)]
            if ends:
                return text[: len(text) - max(map(len, ends))], place + 1
    return None


@given(
    ids=st.lists(st.integers(0, 3), max_size=12),
    sizes=st.lists(st.integers(1, 4), max_size=12),
    stops=st.lists(st.text("abc", min_size=1, max_size=3), max_size=3),
    logprobs=st.booleans(),
    ended_by_eos=st.booleans(),
)
def test_text_count_and_reason_for_any_grouping(ids, sizes, stops, logprobs, ended_by_eos):
    one = answer(*stops, logprobs=logprobs)
    whole = [*ids, EOS] if ended_by_eos else [*ids, 0]
    reason = "stop" if ended_by_eos else "length"
    pieces, start = [], 0
    for size in [*sizes, len(whole)]:
        part = whole[start : start + size]
        start += size
        if part and not one.ended:
            pieces.append(one.feed(delta(*part, reason=reason if start >= len(whole) else None)))
    text = "".join(piece.text for piece in pieces)
    stopped = first_stop(whole[:-1] if ended_by_eos else whole, stops)
    if stopped is None:
        printed = ids if ended_by_eos else whole
        assert text == "".join(TOKENS[one] for one in printed)
        assert (one.n_tokens, pieces[-1].finish_reason) == (len(whole), reason)
        shown = len(printed)
    else:
        assert (text, one.n_tokens) == stopped
        assert pieces[-1].finish_reason == "stop"
        shown = stopped[1]
    assert one.ended
    assert not any(piece.finish_reason for piece in pieces[:-1])
    if logprobs:
        assert sum(len(piece.tokens) for piece in pieces) == shown
    else:
        assert all(piece.tokens is None for piece in pieces)


def test_an_end_id_in_the_middle_of_an_answer_is_only_silent():
    """With `ignore_eos` the model goes on after it."""
    one = answer()
    assert one.feed(delta(0, EOS, 1)).text == "ab"
    assert one.feed(delta(2, reason="length")).text == "ab"
    assert one.n_tokens == 4


@pytest.mark.parametrize("shape", [ChatShape, CompletionShape])
def test_nothing_to_show_sends_nothing(shape):
    head = Head("id", 1, "m")
    assert shape(head, include_usage=False).chunk(answer().feed(delta())) == b""


def test_chunks_are_json_whatever_the_text():
    from json import loads

    shape = CompletionShape(Head('i"d', 1, 'm"\\'), include_usage=True)
    one = answer()
    one._detokeniser = type("", (), {"feed": lambda *_: '"\n\u2028\\🦄', "flush": lambda _: ""})()
    chunk = shape.chunk(one.feed(delta(1, reason="length"))).decode()
    assert chunk.count("\n") == 2 and chunk.endswith("\n\n")
    body = loads(chunk.removeprefix("data: "))
    assert body["choices"][0]["text"] == '"\n\u2028\\🦄'
    assert (body["id"], body["model"], body["usage"]) == ('i"d', 'm"\\', None)
    assert Counts(2, 3).to_json()["total_tokens"] == 5
