"""The node protocol's and the manifest's JSON. Invariant under test: a `decode_*` function
returns a value or raises `DecodeError`, nothing else, whatever is done to valid JSON.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from veilrun.errors import DecodeError
from veilrun.wire import generate, manifest
from veilrun.wire.fields import INT64_MAX
from veilrun.wire.generate import (
    MAX_LOGIT_BIAS,
    MAX_LOGPROBS,
    MAX_STOP_TOKEN_IDS,
    Choice,
    GenerateRequest,
    GenerateResponse,
    PositionLogprobs,
    SamplingParams,
    TokenLogprob,
    Usage,
)
from veilrun.wire.manifest import Manifest, NodeCard

# --- values -------------------------------------------------------------------------------

counts = st.integers(0, INT64_MAX)
ids = st.lists(counts, max_size=6).map(tuple)
short_texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)


def floats(low: float, high: float, exclude_min: bool = False):
    return st.floats(low, high, exclude_min=exclude_min)


samplings = st.builds(
    SamplingParams,
    n=st.integers(1, 128),
    max_tokens=st.integers(1, INT64_MAX),
    min_tokens=counts,
    temperature=floats(0, 100),
    top_p=floats(0, 1, exclude_min=True),
    top_k=counts,
    min_p=floats(0, 1),
    seed=st.none() | st.integers(-INT64_MAX - 1, INT64_MAX),
    presence_penalty=floats(-2, 2),
    frequency_penalty=floats(-2, 2),
    repetition_penalty=floats(0, 100, exclude_min=True),
    stop_token_ids=ids,
    ignore_eos=st.booleans(),
    logit_bias=st.dictionaries(st.integers(0, 10**18 - 1), floats(-1e6, 1e6), max_size=3),
    logprobs=st.none() | st.integers(0, MAX_LOGPROBS),
)
requests = st.builds(
    GenerateRequest,
    token_ids=st.lists(counts, min_size=1, max_size=6).map(tuple),
    sampling_params=samplings,
    request_id=st.none() | short_texts,
    model=st.none() | short_texts,
    stream=st.just(True),
    include_usage=st.booleans(),
    cache_salt=st.none() | short_texts,
)
token_logprobs = st.builds(TokenLogprob, counts, floats(-1e4, 0), counts)


@st.composite
def choices(draw):
    token_ids = draw(ids)
    position = st.builds(
        PositionLogprobs, token_logprobs, st.lists(token_logprobs, max_size=2).map(tuple)
    )
    positions = st.lists(position, min_size=len(token_ids), max_size=len(token_ids)).map(tuple)
    return Choice(
        index=draw(st.integers(0, 127)),
        token_ids=token_ids,
        finish_reason=draw(st.sampled_from((None, "stop", "length", "abort"))),
        stop_reason=draw(st.none() | counts),
        logprobs=draw(st.none() | positions),
    )


responses = st.builds(
    GenerateResponse,
    request_id=short_texts,
    choices=st.lists(choices(), max_size=3).map(tuple),
    usage=st.none() | st.builds(Usage, st.integers(0, 2**40), st.integers(0, 2**40)),
)
manifests = st.builds(
    Manifest,
    mode=st.just("ee"),
    fingerprint=st.text("0123456789abcdef", min_size=32, max_size=32),
    vocab_size=st.integers(1, 2**31),
    weights_root=st.text("0123456789abcdef", min_size=64, max_size=64),
)
cards = st.builds(
    NodeCard,
    model=short_texts,
    engine=short_texts,
    max_model_len=st.integers(1, 2**31),
    manifest=manifests,
)
aborts = st.lists(short_texts, max_size=3).map(tuple)

REQUEST = GenerateRequest((5, 6, 7), SamplingParams(seed=1, logit_bias={3: -1.0}, logprobs=2))
POSITION = PositionLogprobs(TokenLogprob(4, -0.5, 1), (TokenLogprob(9, -1.5, 2),))
RESPONSE = GenerateResponse("r", (Choice(0, (4,), "stop", 4, (POSITION,)),), Usage(3, 1))
CARD = NodeCard("m", "transformers", 512, Manifest("ee", "0" * 32, 100, "f" * 64))

KINDS: dict[str, tuple[st.SearchStrategy, Callable, Callable, object]] = {
    "request": (requests, generate.encode_request, generate.decode_request, REQUEST),
    "response": (responses, generate.encode_response, generate.decode_response, RESPONSE),
    "aborts": (aborts, generate.encode_aborts, generate.decode_aborts, ("a", "b")),
    "manifest": (manifests, manifest.encode_manifest, manifest.decode_manifest, CARD.manifest),
    "card": (cards, manifest.encode_card, manifest.decode_card, CARD),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


# --- what goes in comes out ---------------------------------------------------------------


@every_kind
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_values_survive(kind, data):
    values, encode, decode, _ = KINDS[kind]
    value = data.draw(values)
    assert decode(encode(value)) == value


def test_a_request_alone_takes_the_defaults():
    assert generate.decode_request(b'{"token_ids":[1]}') == GenerateRequest((1,))
    quiet = replace(REQUEST, stream=False)
    assert generate.decode_request(generate.encode_request(quiet)) == quiet


def test_top_k_off_is_zero_in_both_spellings():
    body = {"token_ids": [1], "sampling_params": {"top_k": -1}}
    assert generate.decode_request(json.dumps(body).encode()).sampling_params.top_k == 0


def test_an_answer_with_more_fields_than_we_use_is_read():
    body = json.loads(generate.encode_response(RESPONSE))
    body["kv_transfer_params"] = None
    body["choices"][0]["routed_experts"] = [[1]]
    assert generate.decode_response(json.dumps(body).encode()) == RESPONSE


# --- damage -------------------------------------------------------------------------------


def decode_or_refuse(decode: Callable[[bytes], object], body: bytes) -> None:
    """The invariant of this file."""
    try:
        decode(body)
    except DecodeError as error:
        assert len(str(error)) < 4096


HUGE = 10**400  # a valid JSON number that no float holds
ODDITIES = (
    None, True, False, 0, 1, -1, 2**31, 2**63, -(2**63) - 1, HUGE, -HUGE, 0.5, -0.0, 1e308,
    math.nan, math.inf, -math.inf, "", "x", "1", "\ud800", "\x00", "x" * 5000, [], [[]], [None],
    [True], [1.0], [HUGE], {}, {"": 0}, {"0": True}, {"0": HUGE}, {"-1": 0}, {"²": 0},
)  # fmt: skip


def places(tree: object, path: tuple = ()):
    """Every place in a JSON tree, from the root."""
    yield path
    if isinstance(tree, dict):
        for key, one in tree.items():
            yield from places(one, (*path, key))
    elif isinstance(tree, list):
        for index, one in enumerate(tree):
            yield from places(one, (*path, index))


def with_value(tree: object, path: tuple, value: object) -> object:
    """The tree with another value at a place; at the root, the value."""
    if not path:
        return value
    tree = json.loads(json.dumps(tree))
    inner = tree
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    return tree


@every_kind
def test_every_place_takes_every_oddity_or_refuses(kind):
    _, encode, decode, sample = KINDS[kind]
    tree = json.loads(encode(sample))
    for path in places(tree):
        for oddity in ODDITIES:
            decode_or_refuse(decode, json.dumps(with_value(tree, path, oddity)).encode())


json_values = st.recursive(
    st.sampled_from(ODDITIES) | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


@every_kind
@settings(deadline=None)
@given(data=st.data())
def test_damaged_trees_are_read_or_refused(kind, data):
    values, encode, decode, _ = KINDS[kind]
    tree = json.loads(encode(data.draw(values)))
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(list(places(tree))))
        tree = with_value(tree, path, data.draw(json_values))
    decode_or_refuse(decode, json.dumps(tree).encode())


@every_kind
@settings(deadline=None)
@given(data=st.data(), where=st.integers(0, 2**16), what=st.binary(max_size=4), cut=st.booleans())
@example(data=None, where=0, what=b"\xef\xbb\xbf", cut=False)
@example(data=None, where=0, what=b"\xff\xfe", cut=True)
def test_damaged_bytes_are_read_or_refused(kind, data, where, what, cut):
    values, encode, decode, sample = KINDS[kind]
    body = encode(sample if data is None else data.draw(values))
    where %= len(body) + 1
    decode_or_refuse(decode, body[:where] + what + body[where + (len(what) or 1) * cut :])


@every_kind
def test_bodies_that_are_no_json_object(kind):
    decode = KINDS[kind][2]
    for body in (b"", b"null", b"[]", b"1", b'"x"', b"{", b"[" * 10**5, b"9" * 5000, b"\x80"):
        with pytest.raises(DecodeError):
            decode(body)


# --- the answer names what is wrong ---------------------------------------------------------


def refusal(body: dict) -> DecodeError:
    with pytest.raises(DecodeError) as caught:
        generate.decode_request(json.dumps(body).encode())
    return caught.value


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"prompt": "hello"}, "prompt"),
        ({"stream_options": {"inlude_usage": True}}, "stream_options.inlude_usage"),
        ({"sampling_params": {"temprature": 1}}, "sampling_params.temprature"),
        ({"sampling_params": {"guided_json": {}}}, "sampling_params.guided_json"),
    ],
)
def test_unknown_fields_are_named(body, field):
    error = refusal({"token_ids": [1], **body})
    assert error.field == field
    assert f"unknown field: {field}" in str(error)


def test_a_thousand_unknown_fields_make_a_short_text():
    error = refusal({"token_ids": [1], **{"x" * 500 + str(i): 0 for i in range(1000)}})
    assert len(str(error)) < 1000


@pytest.mark.parametrize("name", ["format", "version", "mode", "fingerprint", "weights_root"])
def test_a_manifest_says_which_field_it_lacks(name):
    body = json.loads(manifest.encode_manifest(CARD.manifest))
    del body[name]
    with pytest.raises(DecodeError, match=rf"manifest\.{name} is missing"):
        manifest.decode_manifest(json.dumps(body).encode())


def test_a_manifest_of_another_version_or_with_more_fields_is_refused():
    body = json.loads(manifest.encode_manifest(CARD.manifest))
    for change, complaint in (({"version": 2}, "version"), ({"base_model": "x"}, "base_model")):
        with pytest.raises(DecodeError, match=complaint):
            manifest.decode_manifest(json.dumps(body | change).encode())


def test_a_card_lists_one_model():
    body = json.loads(manifest.encode_card(CARD))
    for data in ([], body["data"] * 2):
        with pytest.raises(DecodeError, match=f"lists {len(data)} models"):
            manifest.decode_card(json.dumps(body | {"data": data}).encode())


WHOLE = ("n", "max_tokens", "min_tokens", "top_k", "seed", "logprobs")
REAL = (
    "temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty",
)  # fmt: skip


@pytest.mark.parametrize("name", (*WHOLE, *REAL))
@pytest.mark.parametrize(
    "value", [True, False, "1", [1], {}, math.nan, math.inf, -math.inf, HUGE, -HUGE]
)
def test_booleans_texts_and_endless_numbers_are_no_numbers(name, value):
    field = f"sampling_params.{name}"
    assert refusal({"token_ids": [1], "sampling_params": {name: value}}).field == field


@pytest.mark.parametrize("name", WHOLE)
def test_whole_numbers_have_no_point(name):
    refusal({"token_ids": [1], "sampling_params": {name: 1.0}})


@pytest.mark.parametrize("name", ["stream", "include_usage", "ignore_eos"])
@pytest.mark.parametrize("value", [0, 1, "true", None])
def test_numbers_and_words_are_no_booleans(name, value):
    place = {"include_usage": "stream_options", "ignore_eos": "sampling_params"}.get(name)
    refusal({"token_ids": [1]} | ({place: {name: value}} if place else {name: value}))


@pytest.mark.parametrize("ids", [[], [True], [1.0], [-1], [2**63], ["1"], [HUGE], "12", None, {}])
def test_token_ids_are_whole_numbers_of_63_bits(ids):
    assert refusal({"token_ids": ids}).field == "token_ids"


@pytest.mark.parametrize(
    "bias", [{"-1": 0}, {"x": 0}, {"²": 0}, {"": 0}, {"1" * 19: 0}, {"1": "2"}]
)
def test_a_bias_maps_ids_to_numbers(bias):
    error = refusal({"token_ids": [1], "sampling_params": {"logit_bias": bias}})
    assert error.field == "sampling_params.logit_bias"


def test_ids_with_a_cost_at_every_token_are_few():
    most = {
        "stop_token_ids": [*range(MAX_STOP_TOKEN_IDS)],
        "logit_bias": {str(i): 1.0 for i in range(MAX_LOGIT_BIAS)},
    }
    body = json.dumps({"token_ids": [1], "sampling_params": most}).encode()
    params = generate.decode_request(body).sampling_params
    assert (len(params.stop_token_ids), len(params.logit_bias)) == (128, 1024)
    too_many = {"stop_token_ids": [0] * 129, "logit_bias": {str(i): 0 for i in range(1025)}}
    for name, value in too_many.items():
        error = refusal({"token_ids": [1], "sampling_params": {name: value}})
        assert error.field == f"sampling_params.{name}"
        assert f"has {len(value)} entries, the limit is {len(value) - 1}" in str(error)


def test_an_answer_has_as_many_logprobs_as_tokens():
    body = json.loads(generate.encode_response(RESPONSE))
    body["choices"][0]["token_ids"] = [4, 4]
    with pytest.raises(DecodeError, match="2 tokens and 1 logprobs"):
        generate.decode_response(json.dumps(body).encode())
