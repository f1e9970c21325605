"""The public part of a model, as a hostile dealer may send it. Invariant under test: any bytes give
a `DecodeError`, or a model whose frame is exactly those bytes and of which a plan can be made.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import mpc_model_rig as rig
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from veilrun.errors import DecodeError
from veilrun.mpc import inference
from veilrun.mpc.model.public import LIMITS, decode_public, encode_public
from veilrun.mpc.model.quantised import PublicModel
from veilrun.mpc.profile import W16A8, Functions, Lookups
from veilrun.mpc.tables import ExpTable, LinearTable, StepTable
from veilrun.wire import tensors
from veilrun.wire.tensors import Message

TINY = dataclasses.replace(
    W16A8,
    name="tiny",
    functions=Functions(
        exp=Lookups(3, 4),
        gelu=Lookups(3, 2),
        row_sum=Lookups(4),
        variance=Lookups(4, 3),
        head=Lookups(3, 2),
    ),
)
"""Every kind of table, and a frame of a few hundred bytes of them."""


@lru_cache
def frame() -> bytes:
    shape = rig.architecture(n_layers=1, hidden=4, n_heads=2, intermediate=4, n_vocab=5)
    return encode_public(rig.quantised(rig.float_model(shape), profile=TINY).public)


def read(content: bytes) -> PublicModel | None:
    try:
        public = decode_public(content)
    except DecodeError:
        return None
    assert encode_public(public) == content
    inference.plan(public, min(3, public.architecture.max_tokens))
    return public


def message() -> Message:
    return tensors.decode(frame(), limits=LIMITS)


def test_every_kind_of_table_comes_back():
    public = read(frame())
    assert public is not None and public.profile == TINY
    kinds = {name: type(table) for name, table in public.tables.items()}
    assert kinds["layer_0.exp"] is ExpTable and kinds["reciprocal"] is StepTable
    assert kinds["layer_0.gelu_0"] is kinds["head"] is kinds["norm"] is LinearTable


def test_a_frame_is_canonical():
    public = read(frame())
    assert public is not None
    backwards = dict(sorted(public.tables.items(), reverse=True))
    assert encode_public(dataclasses.replace(public, tables=backwards)) == frame()


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**30), st.integers(1, 255))
def test_a_changed_byte_is_refused_or_another_model(place: int, change: int):
    content = bytearray(frame())
    content[place % len(content)] ^= change
    read(bytes(content))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**30), st.binary(max_size=40))
def test_a_cut_or_longer_frame_is_refused(place: int, more: bytes):
    content = frame()
    assert read(content[: place % len(content)]) is None
    assert more == b"" or read(content + more) is None


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_noise_is_refused(content: bytes):
    assert read(content) is None


numbers = st.one_of(
    st.integers(-3, 70), st.integers(), st.floats(), st.none(), st.text(max_size=3), st.booleans()
)


def inner(body: Any, data: st.DataObject) -> Any:
    """Some object or list in a JSON value, that value included."""
    parts = body.values() if isinstance(body, dict) else body
    places = [part for part in parts if isinstance(part, dict | list) and part]
    if places and data.draw(st.booleans()):
        return inner(data.draw(st.sampled_from(places)), data)
    return body


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_other_numbers_are_refused_or_make_a_plan(data: st.DataObject):
    name = data.draw(st.sampled_from(["architecture", "profile", "neurons", "tables"]))
    body = json.loads(message().fields[name])
    place = inner(body, data)
    keys = sorted(place) if isinstance(place, dict) else range(len(place))
    place[data.draw(st.sampled_from(keys))] = data.draw(numbers)
    read(changed({name: text(body)}))


def text(body: Any) -> str:
    return json.dumps(body, sort_keys=True, separators=(",", ":"))


def changed(fields: dict[str, Any] | None = None, **arrays: Any) -> bytes:
    original = message()
    merged = {**original.tensors, **{k.replace("__", "."): v for k, v in arrays.items()}}
    kept = {name: array for name, array in merged.items() if array is not ...}
    return tensors.encode(Message(original.kind, kept, {**original.fields, **(fields or {})}))


def edited(field: str, *path: str, **values: Any) -> bytes:
    """The frame with some numbers of a JSON field set."""
    body = place = json.loads(message().fields[field])
    for step in path:
        place = place[step]
    place.update(values)
    return changed({field: text(body)})


HEAD = np.zeros(8, np.uint32)
EXP = ("tables", "layer_0.exp")
HOSTILE: dict[str, Callable[[], bytes]] = {
    "another kind": lambda: tensors.encode(Message("mpc.other")),
    "unknown field": lambda: changed({"more": 1}),
    "no such embedding": lambda: changed({"embedding": "both"}),
    "embedding of the other kind": lambda: changed({"embedding": "client"}),
    "output_scale 0": lambda: changed({"output_scale": 0.0}),
    "output_scale below 0": lambda: changed({"output_scale": -1.0}),
    "max_tokens 0": lambda: changed({"max_tokens": 0}),
    "max_tokens beyond the positions": lambda: changed({"max_tokens": 27}),
    "n_sentences 0": lambda: changed({"n_sentences": 0}),
    "architecture not JSON": lambda: changed({"architecture": "{"}),
    "architecture a number": lambda: changed({"architecture": 1}),
    "spaces in the JSON": lambda: changed({"profile": f" {message().fields['profile']}"}),
    "a layer more than tables": lambda: edited("architecture", n_layers=2),
    "heads that do not divide": lambda: edited("architecture", n_heads=3),
    "a label that moves the cursor": lambda: edited(
        "architecture", labels=["no", "yes", "\x1b[2J"]
    ),
    "a lone surrogate": lambda: edited("architecture", labels=["no", "yes", "\ud800"]),
    "a profile that cannot be shown": lambda: edited("profile", name="\x00"),
    "an unknown width": lambda: edited("profile", "rings", more=3),
    "an index of other bits": lambda: edited("profile", "functions", "head", index_bits=4),
    "an index beyond its window": lambda: edited("profile", "functions", "exp", low_bits=14),
    "2^40 entries": lambda: edited("profile", "functions", "exp", index_bits=40),
    "2^17 factors": lambda: edited("profile", "functions", "variance", low_bits=17),
    "steps that are lines": lambda: edited("profile", "functions", "head", low_bits=0),
    "lines that are steps": lambda: edited("profile", "functions", "row_sum", low_bits=1),
    "a ring beyond the kernels": lambda: edited("profile", "rings", linear=33),
    "values that do not widen": lambda: edited("profile", "rings", values=32),
    "wide not above hidden": lambda: edited("profile", "rings", wide=24),
    "neurons of no layer": lambda: edited("neurons", layers=[]),
    "too few neurons": lambda: edited("neurons", layers=[[1, 1, 1]]),
    "groups without neurons": lambda: edited("neurons", layers=[[4, 0]]),
    "a group more than tables": lambda: edited("neurons", layers=[[1, 1, 1, 1]]),
    "extra bits beyond 64": lambda: edited(*EXP, extra_bits=33),
    "extra bits of another dtype": lambda: edited(*EXP, extra_bits=0, factor_bits=0),
    "factors of more bits than extra": lambda: edited(*EXP, factor_bits=17),
    "a unit of 0": lambda: edited(*EXP, unit=0.0),
    "a unit beyond the ring": lambda: edited(*EXP, unit=3.0),
    "a unit of a step table": lambda: edited("tables", reciprocal={"extra_bits": 0}),
    "a table too many": lambda: changed(values__more=HEAD),
    "a table missing": lambda: changed(values__head=...),
    "slopes missing": lambda: changed(slopes__head=...),
    "slopes of a step table": lambda: changed(slopes__reciprocal=np.zeros(16, np.uint64)),
    "a guard of e^x": lambda: changed(**{"guard__layer_0.exp": np.zeros(8, bool)}),
    "a short table": lambda: changed(values__head=HEAD[:-1]),
    "short slopes": lambda: changed(slopes__head=HEAD[:-1]),
    "a table of two axes": lambda: changed(values__head=HEAD.reshape(2, 4)),
    "a table of another dtype": lambda: changed(values__head=HEAD.astype(np.uint16)),
    "a signed table": lambda: changed(values__head=HEAD.astype(np.int32)),
    "an entry beyond its ring": lambda: changed(values__reciprocal=np.full(16, 2**48, np.uint64)),
    "a guard of numbers": lambda: changed(guard__head=HEAD),
    "a short guard": lambda: changed(guard__head=HEAD[:-1].astype(bool)),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_frame_is_refused(case: str):
    with pytest.raises(DecodeError):
        decode_public(HOSTILE[case]())


def test_a_guard_may_be_left_out():
    for name in ("head", "reciprocal"):
        public = read(changed(**{f"guard__{name}": ...}))
        assert public is not None
        table = public.tables[name]
        assert not isinstance(table, ExpTable) and table.guard is None
