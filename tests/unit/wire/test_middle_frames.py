"""Frames of a middle-only node: what is sent arrives, and anything else is a DecodeError."""

from __future__ import annotations

import random

import numpy as np
import pytest

from veilrun.errors import DecodeError
from veilrun.wire.middle import (
    End,
    Extend,
    decode_request,
    decode_states,
    encode_request,
    encode_states,
    states_bytes,
)

SESSION = "0123456789abcdef" * 2
ROWS = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)
BODY = encode_request(Extend(SESSION, 5, ROWS, 2))


def test_requests_arrive():
    got = decode_request(BODY, hidden=8, max_bytes=2**20)
    assert isinstance(got, Extend)
    assert (got.session, got.position, got.n_states) == (SESSION, 5, 2)
    assert np.array_equal(got.rows, ROWS)
    end = decode_request(encode_request(End(SESSION)), hidden=8, max_bytes=2**20)
    assert end == End(SESSION)


def test_states_arrive_within_their_bound():
    body = encode_states(ROWS)
    assert len(body) <= states_bytes(3, 8)
    assert np.array_equal(decode_states(body, n_states=3, hidden=8), ROWS)
    for n_states, hidden in ((2, 8), (3, 9), (4, 8)):
        with pytest.raises(DecodeError):
            decode_states(body, n_states=n_states, hidden=hidden)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_states_that_are_no_numbers_are_refused(value: float):
    states = ROWS.copy()
    states[1, 1] = value
    with pytest.raises(DecodeError, match="finite"):
        decode_states(encode_states(states), n_states=3, hidden=8)


@pytest.mark.parametrize(
    "wrong",
    [
        Extend(SESSION[:-1], 0, ROWS, 1),
        Extend(SESSION.upper(), 0, ROWS, 1),
        Extend(SESSION, -1, ROWS, 1),
        Extend(SESSION, 2**40, ROWS, 1),
        Extend(SESSION, 0, ROWS, 4),
        Extend(SESSION, 0, ROWS[:0], 0),
        Extend(SESSION, 0, ROWS[:, :7], 1),
        Extend(SESSION, 0, ROWS.astype(np.float16), 1),  # type: ignore[arg-type]
    ],
)
def test_impossible_requests_are_named(wrong: Extend):
    with pytest.raises(DecodeError) as caught:
        decode_request(encode_request(wrong), hidden=8, max_bytes=2**20)
    assert caught.value.field is not None


def test_any_damage_is_a_decode_error_or_another_request():
    random.seed(0)
    for _ in range(2000):
        body = bytearray(BODY)
        for _ in range(random.randint(1, 3)):
            body[random.randrange(len(body))] ^= 1 << random.randrange(8)
        body = body[: random.choice([len(body), random.randrange(len(body))])]
        try:
            decode_request(bytes(body), hidden=8, max_bytes=2**20)
        except DecodeError:
            continue
    with pytest.raises(DecodeError, match="limit"):
        decode_request(BODY, hidden=8, max_bytes=len(BODY) - 1)
