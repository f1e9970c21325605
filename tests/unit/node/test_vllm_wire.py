"""What is told vLLM, and what is made of its answers."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from veilrun.errors import BusyError, TransportError, UsageError
from veilrun.node.engine import EngineLimits
from veilrun.node.vllm_wire import (
    EventLines,
    best_alternatives,
    normalise,
    read_context_length,
    read_error,
    read_event,
    translate,
)
from veilrun.wire.fields import INT64_MAX
from veilrun.wire.generate import Choice, GenerateRequest, SamplingParams, TokenLogprob

LIMITS = EngineLimits(vocab_size=512, max_model_len=100)


def told(n_prompt: int = 10, **params: Any) -> GenerateRequest:
    request = GenerateRequest((1,) * n_prompt, SamplingParams(**params), "mine", "name")
    return translate(request, LIMITS)


def test_lengths_are_cut_to_the_context() -> None:
    params = told(n_prompt=90, max_tokens=INT64_MAX, min_tokens=50).sampling_params
    assert (params.max_tokens, params.min_tokens) == (10, 10)
    params = told(max_tokens=5).sampling_params
    assert (params.max_tokens, params.min_tokens) == (5, 0)


def test_salts_are_kept_and_never_missing() -> None:
    salted = GenerateRequest((1,), cache_salt="salt")
    assert translate(salted, LIMITS).cache_salt == "salt"
    first, second = told().cache_salt, told().cache_salt
    assert first and second and first != second


def test_callers_choose_no_names_inside_vllm() -> None:
    assert told().request_id is None and told().model is None and told().stream


@pytest.mark.parametrize(
    ("params", "named"),
    [
        ({"temperature": 0.009}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": 0.0, "n": 2}, "n:"),
        ({"seed": -1}, "seed"),
        ({"min_tokens": 17}, "min_tokens"),
        ({"logit_bias": dict.fromkeys(range(1025), 1.0)}, "logit_bias"),
        ({"stop_token_ids": tuple(range(101))}, "stop_token_ids"),
    ],
)
def test_what_vllm_cannot_do_is_refused_by_name(params: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        told(**params)


def test_the_edges_of_what_it_can_do_pass() -> None:
    for params in (
        {"temperature": 0.01},
        {"temperature": 2.0, "n": 2},
        {"temperature": 0.0},
        {"seed": 0},
        {"top_k": INT64_MAX},
        {"stop_token_ids": tuple(range(100))},
    ):
        assert told(**params).sampling_params.top_k <= 512


@given(st.lists(st.integers(1, 40), min_size=1), st.integers(0, 6))
def test_events_are_the_same_however_they_are_cut(cuts: list[int], n_events: int) -> None:
    stream = b"".join(b'data: {"n": %d}\n\n: a comment\n' % n for n in range(n_events))
    lines, got, place = EventLines(), [], 0
    while place < len(stream):
        size = cuts[len(got) % len(cuts)]
        got += lines.feed(stream[place : place + size])
        place += size
    assert [json.loads(one)["n"] for one in got] == list(range(n_events))


def test_a_line_without_end_is_given_up() -> None:
    lines = EventLines()
    with pytest.raises(TransportError, match="bytes"):
        for _ in range(100):
            lines.feed(b"x" * 2**20)


@given(st.binary(max_size=80) | st.text(max_size=60).map(lambda text: b'{"error":' + text.encode()))
def test_any_event_is_a_chunk_or_an_error(data: bytes) -> None:
    try:
        read_event(data)
    except (UsageError, TransportError):
        pass


def test_the_last_event() -> None:
    assert read_event(b"[DONE]") is None


@pytest.mark.parametrize(
    ("status", "error"),
    [(400, UsageError), (422, UsageError), (401, TransportError), (500, BusyError)],
)
def test_errors_by_status(status: int, error: type[Exception]) -> None:
    for body in (b"", b"<html>", b'{"error": "text"}', b'{"error": {"code": "x"}}', b"[]"):
        assert type(read_error(body, status)) is error
    body = json.dumps({"error": {"message": "n is 3", "code": status}}).encode()
    assert type(read_error(body, 500)) is error
    assert "n is 3" in str(read_error(body, 500))


@pytest.mark.parametrize("body", [b"", b"{}", b'{"data": []}', b'{"data": [{}]}'])
def test_a_list_of_models_that_says_nothing(body: bytes) -> None:
    with pytest.raises(TransportError):
        read_context_length(body)


def test_the_models_own_end_is_no_stop_id() -> None:
    ended = Choice(0, (5, 2), "stop", stop_reason=2)
    assert normalise(ended, SamplingParams()).stop_reason is None
    assert normalise(ended, SamplingParams(stop_token_ids=(2,))).stop_reason == 2


@given(st.integers(0, 5), st.integers(1, 12))
def test_the_best_alternatives_whatever_was_chosen(n_top: int, chosen_rank: int) -> None:
    ranked = [TokenLogprob(100 + rank, -float(rank), rank) for rank in range(1, 13)]
    chosen, asked = ranked[chosen_rank - 1], n_top and n_top + 1
    # vLLM's list: the chosen one, the best `asked` without it, cut at `asked` (or at one)
    listed = [chosen, *(one for one in ranked[:asked] if one is not chosen)][: max(asked, 1)]
    assert best_alternatives(tuple(listed), n_top) == tuple(ranked[:n_top])
