"""Request bodies that applications damage in every way: a value, or a fault that names a field."""

from __future__ import annotations

import json
from copy import deepcopy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from veilrun.serve.openai_errors import RequestFault
from veilrun.serve.openai_requests import (
    ChatRequest,
    CompletionRequest,
    decode_chat,
    decode_completion,
)

CHAT = {
    "model": "m",
    "messages": [
        {"role": "system", "content": "s"},
        {"role": "user", "content": [{"type": "text", "text": "u"}], "name": "n"},
        {"role": "assistant", "content": "a", "tool_calls": [], "refusal": None},
    ],
    "stop": ["a", "b"],
    "stream_options": {"include_usage": True},
    "logit_bias": {"5": -1},
    "logprobs": True,
    "top_logprobs": 2,
    "tools": [],
    "response_format": {"type": "text"},
    "temperature": 0.5,
    "seed": 5,
}
COMPLETION = {"model": "m", "prompt": [[1, 2], [3]], "stop": "x", "logprobs": 0, "n": 2}
KINDS = {
    "chat": (CHAT, decode_chat, ChatRequest),
    "completion": (COMPLETION, decode_completion, CompletionRequest),
}
oddities = st.sampled_from(
    [
        None,
        -1,
        10**30,
        -(10**400),
        1.5,
        "",
        "x",
        "\ud800",
        True,
        [],
        {},
        [[]],
        float("inf"),
        float("nan"),
    ]
).map(deepcopy)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=200)
@given(data=st.data())
def test_any_damage_is_a_value_or_a_fault(kind, data):
    body, decode, value = KINDS[kind]
    body = json.loads(json.dumps(body))
    for _ in range(data.draw(st.integers(1, 3))):
        node = body
        while True:
            key = data.draw(
                st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node)))
            )
            if not (isinstance(node[key], dict | list) and node[key] and data.draw(st.booleans())):
                break
            node = node[key]
        node[key] = data.draw(oddities)
    try:
        assert isinstance(decode(json.dumps(body).encode()), value)
    except RequestFault as fault:
        assert fault.param and fault.param in str(fault)


@pytest.mark.parametrize("kind", KINDS)
@given(body=st.binary(max_size=50))
def test_any_bytes_are_a_fault(kind, body):
    with pytest.raises(RequestFault):
        KINDS[kind][1](body)


def test_chat():
    request = decode_chat(json.dumps(CHAT).encode())
    assert request.messages == (
        {"role": "system", "content": "s"},
        {"role": "user", "content": "u", "name": "n"},
        {"role": "assistant", "content": "a"},
    )
    options = request.options
    assert (options.model, options.stops, options.max_tokens) == ("m", ("a", "b"), None)
    assert (options.stream, options.include_usage) == (False, True)
    sampling = options.sampling
    assert (sampling.logprobs, sampling.logit_bias, sampling.seed) == (2, {5: -1.0}, 5)
    assert (sampling.temperature, sampling.top_p, sampling.n, sampling.top_k) == (0.5, 1.0, 1, 0)


def test_completions():
    request = decode_completion(json.dumps(COMPLETION).encode())
    assert request.prompts == ((1, 2), (3,))
    assert (request.options.max_tokens, request.options.sampling.logprobs) == (16, 0)


def test_logprobs_may_be_asked_for_without_alternatives():
    body = {"model": "m", "messages": CHAT["messages"], "logprobs": True}
    assert decode_chat(json.dumps(body).encode()).options.sampling.logprobs == 0
    body["logprobs"] = False
    assert decode_chat(json.dumps(body).encode()).options.sampling.logprobs is None


@pytest.mark.parametrize(
    ("name", "value"), [("store", 0), ("parallel_tool_calls", 1), ("tools", 0), ("audio", 0)]
)
def test_a_neutral_value_has_its_own_type(name, value):
    """In Python 0 equals false and 1 equals true; in JSON they do not."""
    with pytest.raises(RequestFault) as caught:
        decode_chat(json.dumps(CHAT | {name: value}).encode())
    assert (caught.value.param, caught.value.code) == (name, "unsupported_parameter")
