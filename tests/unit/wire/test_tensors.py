"""The tensor frame. Invariant under test: any bytes give a `DecodeError`, or a message whose
frame is exactly those bytes. Nothing else comes out, and nothing large is allocated.
"""

from __future__ import annotations

import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from veilrun.errors import DecodeError, UsageError
from veilrun.wire.fields import Fields
from veilrun.wire.tensors import (
    BFloat16,
    Limits,
    Message,
    array_of,
    bfloat16_of,
    decode,
    encode,
)

LIMITS = Limits(max_frame_bytes=64 * 2**20, max_tensors=16, max_fields=16)
CODES = ("?", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8")

names = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=12)
scalars = st.one_of(
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    st.binary(max_size=20),
)
# Elements are drawn as raw bytes: NaNs of every kind, infinities and -0.0 must survive.
shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)


@st.composite
def arrays(draw):
    dtype = np.dtype(draw(st.sampled_from(CODES))).newbyteorder("<")
    shape = draw(shapes)
    n_bytes = int(np.prod(shape)) * dtype.itemsize
    raw = draw(st.binary(min_size=n_bytes, max_size=n_bytes))
    if dtype.kind == "b":
        raw = bytes(byte & 1 for byte in raw)
    return np.frombuffer(raw, dtype).reshape(shape) if n_bytes else np.zeros(shape, dtype)


bfloat16s = hnp.arrays(np.uint16, shapes).map(BFloat16)
tensors = st.one_of(arrays(), bfloat16s)
messages = st.builds(
    Message,
    kind=names,
    tensors=st.dictionaries(names, tensors, max_size=4),
    fields=st.dictionaries(names, scalars, max_size=4),
)

RICH = Message(
    "stage.forward",
    tensors={
        "mask": np.array([[True, False, True]]),
        "hidden": np.arange(6, dtype=np.float16).reshape(2, 3),
        "share": np.array([2**64 - 1, 0], dtype=np.uint64),
        "weights": BFloat16(np.array([0x3F80, 0x7FC0], dtype=np.uint16)),
        "one": np.array(-7, dtype=np.int8),
        "none": np.zeros((0, 4), dtype=np.float32),
    },
    fields={"serial": 7, "scale": 0.125, "last": True, "text": "é", "nonce": b"\x00\xff"},
)


def bits_of(tensor) -> tuple:
    array = tensor.bits if isinstance(tensor, BFloat16) else tensor
    return type(tensor).__name__, array.dtype.newbyteorder("="), array.shape, array.tobytes()


def assert_same(a: Message, b: Message) -> None:
    """Compares without `Message.__eq__`, which is itself defined by `encode`."""
    assert a.kind == b.kind
    assert {k: bits_of(v) for k, v in a.tensors.items()} == {
        k: bits_of(v) for k, v in b.tensors.items()
    }
    assert {k: (type(v), v) for k, v in a.fields.items()} == {
        k: (type(v), v) for k, v in b.fields.items()
    }


# --- what goes in comes out ---------------------------------------------------------------


@settings(deadline=None)
@given(messages)
def test_messages_survive(message):
    frame = encode(message)
    back = decode(frame, limits=LIMITS)
    assert_same(message, back)
    assert back == message
    assert encode(back) == frame


def test_the_format_is_pinned_byte_by_byte():
    message = Message(
        "k", tensors={"x": np.array([[1], [-2]], dtype=np.int16)}, fields={"b": True, "a": 1.5}
    )
    assert encode(message) == (
        b"VRT\x01" + b"\x02\x00" + b"\x01\x00" + b"\x01k"
        b"\x01a\x03" + struct.pack("<d", 1.5) + b"\x01b\x01\x01"
        b"\x01x\x07\x02" + struct.pack("<2Q", 2, 1) + bytes(3) + b"\x01\x00\xfe\xff"
    )  # fmt: skip


def test_order_layout_and_byte_order_do_not_show():
    plain = np.arange(12, dtype=np.int32).reshape(3, 4)
    frame = encode(Message("k", {"a": plain, "b": plain}, {"x": 1, "y": 0.0}))
    twins = [
        Message("k", {"b": plain, "a": plain}, {"y": -0.0, "x": 1}),
        Message("k", {"a": np.asfortranarray(plain), "b": plain.astype(">i4")}, {"x": 1, "y": 0.0}),
        Message("k", {"a": np.repeat(plain, 2, axis=1)[:, ::2], "b": plain}, {"x": 1, "y": 0.0}),
    ]
    assert [encode(twin) for twin in twins] == [frame] * len(twins)
    assert decode(frame, limits=LIMITS) == twins[0]


def test_types_are_part_of_equality():
    ones = (1, 1.0, True)
    assert len({encode(Message("k", fields={"x": one})) for one in ones}) == len(ones)
    assert Message("k", fields={"x": 1}) != Message("k", fields={"x": True})
    bits = np.ones(3, np.uint16)
    assert Message("k", {"x": bits}) != Message("k", {"x": BFloat16(bits)})
    assert Message("k") != "k"


def test_tensors_are_aligned_read_only_views_of_the_frame():
    frame = encode(RICH)
    message = decode(frame, limits=LIMITS)
    whole = np.frombuffer(frame, np.uint8)
    for tensor in message.tensors.values():
        array = tensor.bits if isinstance(tensor, BFloat16) else tensor
        assert array.size == 0 or np.shares_memory(array, whole)
        assert array.flags.aligned
        assert not array.flags.writeable
        with pytest.raises(ValueError, match="WRITEABLE"):
            array.flags.writeable = True


def test_decoding_allocates_next_to_nothing():
    frame = encode(Message("k", {"big": np.zeros(2**23, np.uint16), "flags": np.ones(2**20, "?")}))
    tracemalloc.start()
    try:
        decode(frame, limits=LIMITS)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 64 * 2**10 < len(frame)


def test_nothing_of_a_tensor_or_field_shows_in_a_log():
    secret = Message("k", {"share": np.array([123456789])}, {"nonce": b"123456789"})
    assert "123456789" not in repr(secret)
    assert "share" in repr(secret)


# --- damaged frames -----------------------------------------------------------------------


def decode_or_refuse(frame: bytes) -> None:
    """The invariant of this file."""
    try:
        message = decode(frame, limits=LIMITS)
    except DecodeError:
        return
    assert encode(message) == frame


edits = st.lists(
    st.tuples(
        st.sampled_from(("flip", "set", "cut", "insert", "double")),
        st.integers(0, 2**16),
        st.binary(min_size=1, max_size=9),
    ),
    min_size=1,
    max_size=4,
)


def damage(frame: bytes, edit: tuple[str, int, bytes]) -> bytes:
    how, where, what = edit
    where %= len(frame) + 1
    head, tail = frame[:where], frame[where:]
    if how == "flip":
        return head + bytes([tail[0] ^ (1 << what[0] % 8)]) + tail[1:] if tail else frame
    if how == "set":
        return head + what + tail[len(what) :]
    if how == "cut":
        return head + tail[len(what) :]
    if how == "insert":
        return head + what + tail
    return head + tail[: len(what)] + tail


@settings(deadline=None, max_examples=300)
@given(messages, edits)
def test_damaged_valid_frames_are_refused_or_canonical(message, changes):
    frame = encode(message)
    for change in changes:
        frame = damage(frame, change)
    decode_or_refuse(frame)


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_noise_behind_a_good_start_is_refused_or_canonical(noise):
    decode_or_refuse(noise)
    decode_or_refuse(b"VRT\x01" + noise)
    decode_or_refuse(b"VRT\x01\x01\x00\x01\x00\x01k" + noise)


def test_every_flipped_bit_and_every_cut_of_one_frame():
    frame = encode(RICH)
    for position in range(len(frame)):
        decode_or_refuse(frame[:position])
        for bit in range(8):
            decode_or_refuse(damage(frame, ("flip", position, bytes([bit]))))
    with pytest.raises(DecodeError):
        decode(frame[:-1], limits=LIMITS)


def name(text: bytes) -> bytes:
    return bytes([len(text)]) + text


def tensor(text: bytes, tag: int, *shape: int, n_dims: int | None = None) -> bytes:
    n_dims = len(shape) if n_dims is None else n_dims
    return name(text) + bytes([tag, n_dims]) + struct.pack(f"<{len(shape)}Q", *shape)


def frame_of(fields=(), entries=(), data=b"", magic=b"VRT\x01", kind=b"k", pad=b"\0") -> bytes:
    """A frame by the format's text, not by its code, so that it can be wrong."""
    head = magic + struct.pack("<2H", len(fields), len(entries)) + name(kind)
    head += b"".join(fields) + b"".join(entries)
    return head + (pad * (-len(head) % 8) + data if entries else data)


NUMBER, WHOLE, TEXT, RAW, TRUTH = b"\x03", b"\x02", b"\x04", b"\x05", b"\x01"
BAD_FRAMES = {
    "empty": b"",
    "magic": frame_of(magic=b"VRS\x01"),
    "next version": frame_of(magic=b"VRT\x02"),
    "trailing byte": frame_of() + b"\0",
    "trailing byte after a tensor": frame_of(entries=[tensor(b"x", 2, 1)], data=b"\1\0"),
    "kind missing": frame_of(kind=b""),
    "kind with a space": frame_of(kind=b"a b"),
    "kind that is no ASCII": frame_of(kind="é".encode()),
    "fewer fields than counted": b"VRT\x01\x02\x00\x00\x00\x01k" + name(b"a") + TRUTH + b"\1",
    "fields unsorted": frame_of([name(b"b") + TRUTH + b"\1", name(b"a") + TRUTH + b"\1"]),
    "field twice": frame_of([name(b"a") + TRUTH + b"\1", name(b"a") + TRUTH + b"\1"]),
    "field with an unknown tag": frame_of([name(b"a") + b"\x06\1"]),
    "field with tag 0": frame_of([name(b"a") + b"\0"]),
    "field true as 2": frame_of([name(b"a") + TRUTH + b"\2"]),
    "field NaN": frame_of([name(b"a") + NUMBER + struct.pack("<d", float("nan"))]),
    "field infinity": frame_of([name(b"a") + NUMBER + struct.pack("<d", float("-inf"))]),
    "field minus zero": frame_of([name(b"a") + NUMBER + struct.pack("<d", -0.0)]),
    "field whole number cut": frame_of([name(b"a") + WHOLE + b"\1\2\3"]),
    "field text cut": frame_of([name(b"a") + TEXT + b"\xff\xff" + b"abc"]),
    "field text not UTF-8": frame_of([name(b"a") + TEXT + b"\1\0\xff"]),
    "field text overlong": frame_of([name(b"a") + TEXT + b"\2\0\xc0\x80"]),
    "field text surrogate": frame_of([name(b"a") + TEXT + b"\3\0\xed\xa0\x80"]),
    "field bytes cut": frame_of([name(b"a") + RAW + b"\4\0abc"]),
    "tensors unsorted": frame_of(entries=[tensor(b"b", 2, 0), tensor(b"a", 2, 0)]),
    "tensor twice": frame_of(entries=[tensor(b"a", 2, 0), tensor(b"a", 2, 0)]),
    "tensor without a name": frame_of(entries=[tensor(b"", 2, 0)]),
    "dtype 0": frame_of(entries=[tensor(b"x", 0, 1)], data=b"\1"),
    "dtype 14": frame_of(entries=[tensor(b"x", 14, 1)], data=b"\1"),
    "nine axes": frame_of(entries=[tensor(b"x", 2, *[1] * 9)], data=b"\1"),
    "axes cut": frame_of(entries=[tensor(b"x", 2, 1, n_dims=4)]),
    "less data than the shape": frame_of(entries=[tensor(b"x", 4, 2, 2)], data=bytes(15)),
    "more data than the shape": frame_of(entries=[tensor(b"x", 4, 2, 2)], data=bytes(17)),
    "shape beyond memory": frame_of(entries=[tensor(b"x", 2, 2**62)]),
    "shape that overflows to 0": frame_of(entries=[tensor(b"x", 5, 2**32, 2**32)]),
    "shape with 0 that overflows": frame_of(entries=[tensor(b"x", 5, 0, 2**63, 2**63)]),
    "axis of 2**64 - 1": frame_of(entries=[tensor(b"x", 2, 2**64 - 1)]),
    "padding not zero": frame_of(entries=[tensor(b"x", 2, 1)], data=b"\1", pad=b"\x20"),
    "padding missing": frame_of(entries=[tensor(b"x", 2, 1)], data=b"\1", pad=b""),
    "padding between tensors": frame_of(
        entries=[tensor(b"x", 2, 1), tensor(b"y", 2, 1)], data=b"\1" + b"\0\0\0\0\0\0\1" + b"\1"
    ),
    "boolean element of 2": frame_of(entries=[tensor(b"x", 1, 2)], data=b"\1\2"),
}


@pytest.mark.parametrize("frame", BAD_FRAMES.values(), ids=BAD_FRAMES.keys())
def test_each_way_to_be_malformed_is_refused(frame):
    tracemalloc.start()
    try:
        with pytest.raises(DecodeError):
            decode(frame, limits=LIMITS)
        assert tracemalloc.get_traced_memory()[1] < 2**18
    finally:
        tracemalloc.stop()


def test_the_builder_of_bad_frames_builds_good_ones_too():
    good = frame_of(
        [name(b"a") + NUMBER + struct.pack("<d", 0.5)],
        [tensor(b"x", 1, 2), tensor(b"y", 4, 1)],
        b"\1\0" + bytes(6) + b"\1\0\0\0",
    )
    message = Message("k", {"x": np.array([True, False]), "y": np.uint32([1])}, {"a": 0.5})
    assert encode(message) == good
    assert decode(good, limits=LIMITS) == message


def test_limits_hold():
    frame = encode(RICH)
    enough = Limits(len(frame), len(RICH.tensors), len(RICH.fields))
    assert decode(frame, limits=enough) == RICH
    for less in (
        Limits(len(frame) - 1, 99, 99),
        Limits(len(frame), len(RICH.tensors) - 1, 99),
        Limits(len(frame), 99, len(RICH.fields) - 1),
    ):
        with pytest.raises(DecodeError, match="limit"):
            decode(frame, limits=less)


# --- what the format has no place for ---------------------------------------------------------

NO_PLACE = {
    "NaN field": Message("k", fields={"x": float("nan")}),
    "infinite field": Message("k", fields={"x": float("inf")}),
    "field beyond int64": Message("k", fields={"x": 2**63}),
    "field below int64": Message("k", fields={"x": -(2**63) - 1}),
    "None field": Message("k", fields={"x": None}),
    "numpy scalar field": Message("k", fields={"x": np.float64(1.0)}),
    "long text field": Message("k", fields={"x": "é" * 2**15}),
    "long bytes field": Message("k", fields={"x": bytes(2**16)}),
    "lone surrogate": Message("k", fields={"x": "\ud800"}),
    "empty kind": Message(""),
    "kind with a newline": Message("k\n"),
    "long name": Message("k", {"x" * 256: np.zeros(1)}),
    "complex tensor": Message("k", {"x": np.zeros(1, np.complex64)}),
    "object tensor": Message("k", {"x": np.array([object()])}),
    "text tensor": Message("k", {"x": np.array(["a"])}),
    "time tensor": Message("k", {"x": np.zeros(1, "datetime64[s]")}),
    "structured tensor": Message("k", {"x": np.zeros(1, [("a", "u1")])}),
    "long double tensor": Message("k", {"x": np.zeros(1, np.longdouble)}),
    "bfloat16 of int16": Message("k", {"x": BFloat16(np.zeros(1, np.int16))}),
    "nine axes": Message("k", {"x": np.zeros((1,) * 9)}),
    "boolean of 2": Message("k", {"x": np.array([2], np.uint8).view(bool)}),
    "too many fields": Message("k", fields={str(i): True for i in range(2**16)}),
}


@pytest.mark.parametrize("message", NO_PLACE.values(), ids=NO_PLACE.keys())
def test_what_has_no_place_is_refused_before_it_is_sent(message):
    with pytest.raises(UsageError):
        encode(message)


# --- readers ------------------------------------------------------------------------------


def test_readers_give_the_tensor_or_name_what_is_wrong():
    message = decode(encode(RICH), limits=LIMITS)
    received = Fields(message.tensors, "tensors")
    hidden = received.take("hidden", array_of(np.float16, None, 3))
    assert hidden.tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    assert received.take("one", array_of(np.int8)).shape == ()
    assert received.take("weights", bfloat16_of(2)).bits.tolist() == [0x3F80, 0x7FC0]
    with pytest.raises(DecodeError, match=r"tensors\.absent is missing"):
        received.take("absent", array_of(np.uint8, None))
    with pytest.raises(DecodeError, match=r"unknown field: tensors\.mask"):
        received.finish()


@pytest.mark.parametrize(
    ("tensor_name", "reader", "complaint"),
    [
        ("hidden", array_of(np.float32, 2, 3), "must be float32, is float16"),
        ("hidden", array_of(np.float16, 3, 2), r"must have shape \(3, 2\), has \(2, 3\)"),
        ("hidden", array_of(np.float16, None), r"must have shape \(any\), has \(2, 3\)"),
        ("hidden", bfloat16_of(2, 3), "must be bfloat16, is float16"),
        ("weights", array_of(np.uint16, 2), "must be uint16, is bfloat16"),
        ("weights", bfloat16_of(3), r"must have shape \(3\), has \(2,\)"),
    ],
)
def test_readers_refuse_another_dtype_or_shape(tensor_name, reader, complaint):
    message = decode(encode(RICH), limits=LIMITS)
    with pytest.raises(DecodeError, match=complaint) as caught:
        Fields(message.tensors, "").take(tensor_name, reader)
    assert caught.value.field == tensor_name
