"""What a node says, bit by bit: framing, checks, and damage to valid answers."""

from __future__ import annotations

import json
import time
from copy import deepcopy
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from veilrun.equivariant.codec import Codec
from veilrun.errors import DecodeError, PeerError, TransportError, VerificationError
from veilrun.keys import MasterKey
from veilrun.serve.ask import Ask, Sampling
from veilrun.serve.node_answers import (
    MAX_LINE_BYTES,
    AnswerReader,
    EventReader,
    max_body_bytes,
    printable,
)
from veilrun.serve.node_client import seal
from veilrun.wire.generate import (
    Choice,
    GenerateResponse,
    PositionLogprobs,
    TokenLogprob,
    encode_response,
)

CODEC = Codec(MasterKey(bytes(32)), "digest", "llama", 64)
ASK = Ask((1, 2, 3), 6, Sampling(n=2, logprobs=1))


def event(*choices: Choice) -> bytes:
    return encode_response(GenerateResponse("r", choices))


def choice(index: int, ids: list[int], reason: str | None = None) -> Choice:
    """An answer's next plain `ids` as an honest node would send them."""
    cipher = CODEC.encode(ids)
    positions = tuple(
        PositionLogprobs(TokenLogprob(one, -0.5, 1), (TokenLogprob(one ^ 1, -1.0, 2),))
        for one in cipher
    )
    return Choice(index, cipher, reason, logprobs=positions)  # type: ignore[arg-type]


GOOD = [
    event(choice(0, [5])),
    event(choice(1, [6, 7]), choice(0, [8])),
    event(choice(1, [2], "stop")),
    event(choice(0, [9, 9], "length")),
]


def test_an_honest_stream_in_plain_ids():
    reader = AnswerReader(ASK, CODEC)
    deltas = reader.events([*GOOD[:3]])
    assert not reader.complete
    deltas += reader.events([GOOD[3], b"[DONE]", b"never looked at"])
    assert reader.complete
    assert [(one.index, one.ids, one.finish_reason) for one in deltas] == [
        (0, (5,), None),
        (1, (6, 7), None),
        (0, (8,), None),
        (1, (2,), "stop"),
        (0, (9, 9), "length"),
    ]
    position = deltas[0].positions[0]
    assert (position.chosen.token_id, position.chosen.logprob) == (5, -0.5)
    assert position.top[0].token_id == CODEC.decode([CODEC.encode([5])[0] ^ 1])[0]


BAD = {
    "an id outside the vocabulary": [event(Choice(0, (64,), logprobs=choice(0, [1]).logprobs))],
    "an answer nobody asked for": [event(choice(2, [1]))],
    "more after the end": [event(choice(0, [1], "stop")), event(choice(0, [1]))],
    "too many tokens": [event(choice(0, [1] * 6)), event(choice(0, [1]))],
    "no log-probabilities": [event(replace(choice(0, [1]), logprobs=None))],
    "log-probabilities of others": [
        event(replace(choice(0, [1]), logprobs=choice(0, [2]).logprobs))
    ],
    "an impossible alternative": [
        event(
            replace(
                choice(0, [1]),
                logprobs=(
                    PositionLogprobs(
                        TokenLogprob(CODEC.encode([1])[0], -1.0, 1), (TokenLogprob(64, -1.0, 2),)
                    ),
                ),
            )
        )
    ],
    "the end too soon": [event(choice(0, [1], "stop")), b"[DONE]"],
    "an error": [b'{"error": {"message": "no memory"}}'],
    "no JSON": [b"so sorry"],
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_the_peers_fault(name):
    with pytest.raises(PeerError):
        AnswerReader(ASK, CODEC).events(BAD[name])


def test_an_abort_may_be_a_shutdown():
    with pytest.raises(TransportError):
        AnswerReader(ASK, CODEC).events([event(choice(0, [], "abort"))])


def test_a_whole_answer_is_whole():
    both = [choice(0, [5, 6], "length"), choice(1, [7], "stop")]
    assert len(AnswerReader(ASK, CODEC).whole(event(*both))) == 2
    with pytest.raises(PeerError, match="1 answers unfinished"):
        AnswerReader(ASK, CODEC).whole(event(both[0]))


def test_a_choice_without_news_is_no_progress():
    assert AnswerReader(ASK, CODEC).events([event(Choice(0, ()))]) == []


oddities = st.sampled_from(
    [None, -1, 64, 10**30, -(10**400), 1.5, "x", True, [], {}, [[]], float("-inf"), float("nan")]
).map(deepcopy)


@settings(max_examples=200)
@given(data=st.data())
def test_damage_to_valid_answers_is_a_peer_error_or_nothing(data):
    """Random bytes never get past the JSON reader, so valid answers are damaged instead."""
    events = [json.loads(one) for one in GOOD]
    for _ in range(data.draw(st.integers(1, 3))):
        node = data.draw(st.sampled_from(events))
        while True:
            key = data.draw(
                st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node)))
            )
            if not (isinstance(node[key], dict | list) and node[key] and data.draw(st.booleans())):
                break
            node = node[key]
        node[key] = data.draw(oddities)
    reader = AnswerReader(ASK, CODEC)
    try:
        deltas = reader.events([json.dumps(one).encode() for one in events])
    except (PeerError, TransportError):
        return
    assert all(0 <= one < 64 for delta in deltas for one in delta.ids)
    for index in range(2):
        assert sum(len(one.ids) for one in deltas if one.index == index) <= 6


@given(text=st.binary(max_size=200), cuts=st.lists(st.integers(0, 200), max_size=5))
def test_events_do_not_depend_on_how_bytes_arrive(text, cuts):
    data = (
        b"data: one\n\n: comment\n\ndata:two\r\n\r\n"
        + b"data: "
        + text.replace(b"\n", b"")
        + b"\n\n"
    )
    borders = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
    reader, events = EventReader(), []
    for start, end in pairwise(borders):
        events += reader.feed(data[start:end])
    assert events[:2] == [b"one", b"two"]
    assert events[2:] == [text.replace(b"\n", b"").strip()]


def test_lines_have_an_end():
    reader = EventReader()
    reader.feed(b"data: " + b"x" * (MAX_LINE_BYTES - 10))
    with pytest.raises(DecodeError, match="has more than"):
        reader.feed(b"x" * 20)
    with pytest.raises(DecodeError, match="has more than"):
        EventReader().feed(b"data: " + b"x" * MAX_LINE_BYTES + b"\n")
    with pytest.raises(DecodeError, match="server-sent events"):
        EventReader().feed(b"HTTP/1.1 200 OK\r\n")


def test_a_line_in_many_packets_is_read_in_linear_time():
    """Joining again at every packet would move 30 GB."""
    reader, started_s = EventReader(), time.monotonic()
    for _ in range(MAX_LINE_BYTES // 256 - 1):
        assert reader.feed(b":" * 256) == []
    assert reader.feed(b"\ndata: x\n") == [b"x"]
    assert time.monotonic() - started_s < 1


def test_more_choices_than_answers_are_refused_unread():
    choices = [None] * 3  # reading one of them would be another error
    body = json.dumps({"request_id": "r", "choices": choices}).encode()
    with pytest.raises(DecodeError, match="choices has 3 entries, the limit is 2"):
        AnswerReader(ASK, CODEC).events([body])


def test_the_limit_of_a_whole_answer_fits_the_largest_one():
    for logprobs in (None, 0, 20):
        ask = Ask((1,), 50, Sampling(n=3, logprobs=logprobs))
        one = TokenLogprob(2**31, -1234.567890123456789, 2**31)
        positions = (PositionLogprobs(one, (one,) * ((logprobs or 0) + 1)),) * 50
        whole = [
            Choice(index, (2**31,) * 50, "length", 2**31, None if logprobs is None else positions)
            for index in range(3)
        ]
        assert len(event(*whole)) < max_body_bytes(ask)


def test_what_a_node_writes_is_fit_to_print():
    assert printable("a\x1b[31m\nb\u202e") == "a?[31m?b?"
    assert len(printable("x" * 10_000)) == 200


@given(
    prompt=st.lists(st.integers(0, 63), min_size=1, max_size=9),
    bias=st.dictionaries(st.integers(0, 63), st.floats(-100, 100), max_size=5),
    ignore_eos=st.booleans(),
)
def test_every_id_that_is_sent_went_through_the_codec(prompt, bias, ignore_eos):
    ask = Ask(tuple(prompt), 5, Sampling(logit_bias=bias, min_tokens=9, ignore_eos=ignore_eos))
    sealed = seal(ask, CODEC, (2, 3), model="m", salt="s", stream=True)
    params = sealed.sampling_params
    assert CODEC.decode(sealed.token_ids) == tuple(prompt)
    assert {CODEC.decode_one(one): value for one, value in params.logit_bias.items()} == bias
    assert CODEC.decode(params.stop_token_ids) == (() if ignore_eos else (2, 3))
    assert params.min_tokens == params.max_tokens == 5


def test_an_end_that_no_id_has_is_a_verification_error():
    with pytest.raises(VerificationError):
        AnswerReader(ASK, CODEC).events(BAD["an id outside the vocabulary"])
