"""The control messages: all of them pass, and nothing else does."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from veilrun.errors import (
    BusyError,
    DecodeError,
    PeerError,
    SpentError,
    TransportError,
    VerificationError,
)
from veilrun.mpc import wire
from veilrun.wire import tensors
from veilrun.wire.tensors import Message

DIGEST, RUN, KEY = b"\x01" * 32, b"\x02" * 16, b"\x5a" * 32
NUMBERS = np.array([3, 4], np.int64)
EVERY = (
    wire.Greeting(1, "P1"),
    wire.Welcome(1, DIGEST, RUN, KEY),
    wire.ListDealt(),
    wire.Deal(16),
    wire.Dealt(NUMBERS, NUMBERS, 0.5, 0.25),
    wire.Describe("setup"),
    wire.Manifest(DIGEST, RUN, "P2", "7", 16, 2**20 + 1, np.zeros((2, 32), np.uint8)),
    wire.Fetch("12", 3, 4),
    wire.Confirm("12"),
    wire.Confirmed(),
    wire.Collect(),
    wire.Question(5, 16),
    wire.Listening(),
    wire.Hello(1, "P2", DIGEST, RUN, "w16a8", 5, 16),
    wire.Go(),
    wire.Done(12, 0.5, 0.25),
    wire.Working(),
    wire.Refusal("busy", "later"),
)
FRAMES = [wire.encode(one) for one in EVERY]


def test_every_kind_is_here() -> None:
    assert {type(one) for one in EVERY} == set(wire._KINDS.values())
    assert len({one.kind for one in EVERY}) == len(EVERY)


@pytest.mark.parametrize("message", EVERY, ids=lambda one: one.kind)
def test_what_is_encoded_is_decoded(message: wire.Control) -> None:
    again = wire.decode(wire.encode(message))
    assert type(again) is type(message)
    for field in dataclasses.fields(message):
        assert np.array_equal(getattr(again, field.name), getattr(message, field.name))


def test_a_key_is_not_shown() -> None:
    assert repr(KEY)[2:10] not in repr(EVERY[1])
    assert "key" not in repr(EVERY[1])


@given(st.binary(max_size=300))
def test_any_bytes(frame: bytes) -> None:
    with pytest.raises(DecodeError):
        wire.decode(frame)


@given(st.sampled_from(FRAMES), st.data())
def test_changed_frames(frame: bytes, data: st.DataObject) -> None:
    changed = bytearray(frame)
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(changed[: data.draw(st.integers(len(changed) // 2, len(changed)))])
    try:
        wire.decode(cut)
    except DecodeError:
        pass


@pytest.mark.parametrize("frame", FRAMES, ids=[one.kind for one in EVERY])
def test_fields_left_out_and_put_in(frame: bytes) -> None:
    message = tensors.decode(frame, limits=tensors.Limits())
    for name in message.fields:
        rest = {key: value for key, value in message.fields.items() if key != name}
        with pytest.raises(DecodeError, match=name):
            wire.decode(tensors.encode(Message(message.kind, message.tensors, rest)))
    more = {**message.fields, "more": 1}
    with pytest.raises(DecodeError, match="more"):
        wire.decode(tensors.encode(Message(message.kind, message.tensors, more)))


BAD_VALUES = (
    wire.Greeting(1, "P3"),
    wire.Deal(0),
    wire.Deal(2**40),
    wire.Describe("../setup"),
    wire.Describe("007"),
    wire.Describe("\u0661"),
    wire.Describe("-1"),
    wire.Fetch("1", 0, 65),
    wire.Welcome(1, DIGEST, RUN, KEY[:-1]),
    wire.Hello(1, "P1", DIGEST, RUN, "w16a8", -1, 16),
    wire.Dealt(NUMBERS, NUMBERS[:1], 0.0, 0.0),
    wire.Dealt(-NUMBERS, NUMBERS, 0.0, 0.0),
    wire.Dealt(NUMBERS, NUMBERS - 4, 0.0, 0.0),
    wire.Done(0, -1.0, 0.0),
    wire.Refusal("because", "x"),
    wire.Manifest(DIGEST, RUN, "P2", "7", 16, 2**20 + 1, np.zeros((1, 32), np.uint8)),
    wire.Manifest(DIGEST, RUN, "P2", "7", 16, 0, np.zeros((1, 32), np.uint8)),
)


@pytest.mark.parametrize("message", BAD_VALUES, ids=str)
def test_values_that_cannot_be(message: wire.Control) -> None:
    with pytest.raises(DecodeError):
        wire.decode(wire.encode(message))


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("busy", BusyError),
        ("unreachable", TransportError),
        ("mismatch", VerificationError),
        ("spent", SpentError),
        ("other", PeerError),
    ],
)
def test_a_refusal_is_an_error_of_its_kind(reason: str, kind: type[Exception]) -> None:
    with pytest.raises(kind, match="P2 refuses: no way"):
        wire.expect(wire.refusal(reason, "no way"), wire.Go, "P2")


def test_another_message_than_expected() -> None:
    with pytest.raises(DecodeError, match=r"P2 sent mpc.go where mpc.hello is due"):
        wire.expect(wire.encode(wire.Go()), wire.Hello, "P2")


def test_a_refusal_cannot_write_on_the_terminal() -> None:
    with pytest.raises(PeerError) as caught:
        wire.expect(wire.refusal("other", "a\x1b[2Jb\n" + "c" * 5000), wire.Go, "P2")
    text = str(caught.value)
    assert text.isprintable() and len(text) < 1100
