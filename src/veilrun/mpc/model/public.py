"""The public part of a quantised model as one frame: what the dealer sends to both parties.

The frame is a tensor message (`wire.tensors`) of kind `mpc.public`.

    fields     architecture, profile, anchors, neurons, tables: JSON with sorted keys and no spaces.
               profile: all its numbers, so that a change of a built-in one changes no model made
               before. tables: of each table that has any, the numbers that do not follow from
               the profile: extra_bits, and unit and factor_bits of e^x.
               embedding, output_scale, max_tokens, n_sentences: as in `PublicModel`
    tensors    values.<table>: 2^n elements in the smallest of uint16, uint32 and uint64
               slopes.<table>: as many, of a linear table
               guard.<table>: bool, 2^n; left out where a table has no guard

Which kind a table is, and how wide, follows from the profile (`table_forms`).

Invariants. `decode_public` returns a model that a plan can be made of, or raises `DecodeError`,
whatever the bytes. Tables are views of the frame: nothing is allocated that the frame does not
pay for. Canonical: what is decoded encodes to the same bytes.
"""

from __future__ import annotations

import dataclasses
import json
import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import numpy as np

from veilrun.errors import DecodeError, UsageError
from veilrun.mpc.model import grids
from veilrun.mpc.model.architecture import Architecture
from veilrun.mpc.model.quantised import CLIENT_EMBEDDING, SECRET_EMBEDDING, PublicModel
from veilrun.mpc.operations import ANCHORS
from veilrun.mpc.profile import Lookups, Profile
from veilrun.mpc.shares import Array, dtype_of
from veilrun.mpc.tables import ExpTable, LinearTable, StepTable, Table
from veilrun.wire import fields, tensors
from veilrun.wire.fields import Fields
from veilrun.wire.tensors import Limits, Message

T = TypeVar("T")
Neurons = tuple[tuple[int, ...], ...]

KIND: Final = "mpc.public"
LIMITS: Final = Limits(max_frame_bytes=1 << 28, max_tensors=1 << 15, max_fields=16)

_MAX_BITS: Final = 64
_MAX_LINEAR_BITS: Final = 32  # what the kernels multiply
_MAX_INDEX_BITS: Final = 16
_MAX_LOW_BITS: Final = 16
_MAX_GROUPS: Final = 64
_VALUES: Final = "values."
_SLOPES: Final = "slopes."
_GUARD: Final = "guard."


@dataclass(frozen=True, slots=True)
class TableForm:
    """What a table must be. bits: of the ring of its results. window: of what is looked up."""

    how: Lookups
    bits: int
    window: int
    is_exp: bool = False

    def table(self) -> Table:
        """One of this form without content, as wide as `grids` makes them."""
        extra_bits = grids.extra_bits(self.how, self.bits, is_exp=self.is_exp)
        low_bits, dtype = self.how.low_bits, dtype_of(self.bits + extra_bits)
        values = np.broadcast_to(dtype.type(0), (1 << self.how.index_bits,))
        if not low_bits:
            return StepTable(values, self.bits, None if self.is_exp else values)
        if not self.is_exp:
            return LinearTable(values, values, self.bits, low_bits, extra_bits, values)
        return ExpTable(values, 1.0, self.bits, low_bits, extra_bits, grids.FACTOR_BITS)


def encode_public(public: PublicModel) -> bytes:
    """The one frame of this model.

    Raises:
        UsageError: a number or text that the format has no place for.
    """
    arrays: dict[str, tensors.Tensor] = {}
    numbers: dict[str, dict[str, float]] = {}
    for name, table in public.tables.items():
        arrays[_VALUES + name] = table.values
        if isinstance(table, ExpTable):
            numbers[name] = {
                "extra_bits": table.extra_bits,
                "factor_bits": table.factor_bits,
                "unit": float(table.unit),
            }
            continue
        if table.guard is not None:
            arrays[_GUARD + name] = table.guard.astype(np.bool_)
        if isinstance(table, LinearTable):
            arrays[_SLOPES + name] = table.slopes
            numbers[name] = {"extra_bits": table.extra_bits}
    body: dict[str, tensors.Scalar] = {
        "architecture": _to_json(public.architecture.to_json()),
        "profile": _to_json(dataclasses.asdict(public.profile)),
        "anchors": _to_json({"layers": public.anchors}),
        "neurons": _to_json({"layers": public.neurons}),
        "tables": _to_json(numbers),
        "embedding": public.embedding,
        "output_scale": float(public.output_scale),
        "max_tokens": int(public.max_tokens),
        "n_sentences": int(public.n_sentences),
    }
    return tensors.encode(Message(KIND, arrays, body))


def decode_public(frame: bytes) -> PublicModel:
    """Read a frame.

    Raises:
        DecodeError: it is not one that `encode_public` gives, or its parts contradict each other.
    """
    message = tensors.decode(frame, limits=LIMITS)
    if message.kind != KIND:
        raise DecodeError(f"a frame of kind {message.kind}, not {KIND}")
    body = Fields(message.fields, KIND)
    architecture = Architecture.from_json(body.take("architecture", _from_json))
    profile = _record(Profile, body.take("profile", _from_json), "profile")
    _check_profile(profile)
    if not all(name.isprintable() for name in (*architecture.labels, profile.name)):
        raise DecodeError("a label or profile with characters that cannot be shown")
    neurons = _neurons(body.take("neurons", _from_json), architecture)
    embedding = body.take("embedding", fields.one_of(SECRET_EMBEDDING, CLIENT_EMBEDDING))
    forms = table_forms(architecture, profile, embedding, neurons)
    public = PublicModel(
        architecture=architecture,
        profile=profile,
        embedding=embedding,
        anchors=_anchors(body.take("anchors", _from_json), architecture),
        neurons=neurons,
        tables=_tables(message.tensors, body.take("tables", _from_json), forms),
        output_scale=body.take("output_scale", fields.between(0.0, 2.0**64, open_low=True)),
        max_tokens=body.take("max_tokens", fields.within(1, architecture.max_tokens)),
        n_sentences=body.take("n_sentences", fields.within(1, fields.INT64_MAX)),
    )
    body.finish()
    if not _is_canonical(public, frame):
        raise DecodeError("a public model that is not in its canonical form")
    return public


def table_forms(
    architecture: Architecture, profile: Profile, embedding: str, neurons: Neurons
) -> dict[str, TableForm]:
    """Every table that the network reads, by name."""
    rings, windows, functions = profile.rings, profile.windows, profile.functions
    norm = TableForm(functions.variance, rings.wide, windows.variance)
    forms = {"reciprocal": TableForm(functions.row_sum, rings.wide, windows.row_sum)}
    for number in range(architecture.n_layers):
        layer = f"layer_{number}"
        forms[f"{layer}.exp"] = TableForm(functions.exp, rings.linear, rings.scores, True)
        for group in range(len(neurons[number])):
            forms[f"{layer}.gelu_{group}"] = TableForm(functions.gelu, rings.linear, windows.gelu)
        forms |= {f"{layer}.norm_1": norm, f"{layer}.norm_2": norm}
    if embedding == SECRET_EMBEDDING:
        forms["norm"] = norm
    if architecture.head_activation is not None:
        forms["head"] = TableForm(functions.head, rings.linear, windows.head)
    return forms


def matrix_shapes(public: PublicModel) -> dict[str, tuple[int, int]]:
    """What each matrix's weight measures: [n_in, n_out], or [2, n] for a diagonal one."""
    a = public.architecture
    shapes = {}
    for name, n_out in public.outputs.items():
        n_in = a.intermediate if name.endswith(".down") else a.hidden
        shapes[name] = (2 if is_diagonal(name) else n_in, n_out)
    return shapes


def is_diagonal(matrix: str) -> bool:
    """Whether the matrix of this name is a gain and a column, not a dense map."""
    return matrix == "pool" or ".residual_" in matrix


# --- JSON -------------------------------------------------------------------------------------


def _to_json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _from_json(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, str):
        raise DecodeError(f"{name} must be text", field=name)
    return fields.json_object(value.encode())


def _is_canonical(public: PublicModel, frame: bytes) -> bool:
    try:
        return encode_public(public) == frame
    except UsageError:  # JSON that grows beyond a field when it is written as we do
        return False


def _record(kind: type[T], value: Any, path: str) -> T:
    """A dataclass of small whole numbers, texts and further such classes."""
    body = Fields(fields.mapping(value, path), path)
    hints = typing.get_type_hints(kind)
    result: dict[str, Any] = {}
    for name, hint in hints.items():
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            inner = body.take(name, fields.mapping)
            result[name] = _record(hint, inner, f"{path}.{name}")
        elif hint is str:
            result[name] = body.take(name, fields.short_text)
        else:
            result[name] = body.take(name, fields.within(0, _MAX_BITS))
    body.finish()
    return kind(**result)


def _anchors(value: Mapping[str, Any], architecture: Architecture) -> tuple[tuple[str, ...], ...]:
    body = Fields(value, "anchors")
    layers = body.take("layers", fields.list_of(fields.list_of(fields.one_of(*ANCHORS))))
    body.finish()
    if [len(layer) for layer in layers] != [architecture.n_heads] * architecture.n_layers:
        raise DecodeError("not one anchor for each head", field="anchors")
    return tuple(map(tuple, layers))


def _neurons(value: Mapping[str, Any], architecture: Architecture) -> Neurons:
    body = Fields(value, "neurons")
    count = fields.within(1, architecture.intermediate)
    groups = fields.list_of(fields.at_most(_MAX_GROUPS, fields.list_of(count)))
    layers = body.take("layers", fields.at_most(architecture.n_layers, groups))
    body.finish()
    if [sum(one) for one in layers] != [architecture.intermediate] * architecture.n_layers:
        raise DecodeError("the groups of neurons do not make up the layers", field="neurons")
    return tuple(tuple(one) for one in layers)


# --- widths and tables ------------------------------------------------------------------------


def _check_profile(profile: Profile) -> None:
    """Refuse widths between which no gate can go: a shrink that grows, an empty extension."""
    rings, windows, functions = profile.rings, profile.windows, profile.functions
    of_function = {
        "exp": (functions.exp, rings.scores),
        "gelu": (functions.gelu, windows.gelu),
        "row_sum": (functions.row_sum, windows.row_sum),
        "variance": (functions.variance, windows.variance),
        "head": (functions.head, windows.head),
    }
    within = {
        "rings.linear": (2, rings.linear, _MAX_LINEAR_BITS),
        "rings.wide": (rings.linear, rings.wide, _MAX_BITS),
        "rings.scores": (2, rings.scores, rings.linear),
        "rings.values": (2, rings.values, rings.linear - 1),
        "rings.hidden": (2, rings.hidden, min(rings.linear, rings.wide - 1)),
        "windows.gelu": (1, windows.gelu, rings.linear),
        "windows.row_sum": (1, windows.row_sum, rings.linear),
        "windows.variance": (1, windows.variance, rings.wide),
        "windows.head": (1, windows.head, rings.linear),
    }
    for name, (how, window) in of_function.items():
        within[f"functions.{name}"] = (1, how.index_bits + how.low_bits, window)
        within[f"functions.{name}.index_bits"] = (1, how.index_bits, _MAX_INDEX_BITS)
        within[f"functions.{name}.low_bits"] = (0, how.low_bits, _MAX_LOW_BITS)
    for name, (low, bits, high) in within.items():
        if not low <= bits <= high:
            raise DecodeError(
                f"profile.{name}: {bits} bits where {low} to {high} fit", field=f"profile.{name}"
            )


def _tables(
    arrays: Mapping[str, tensors.Tensor], about: Mapping[str, Any], forms: Mapping[str, TableForm]
) -> dict[str, Table]:
    body, numbers = Fields(arrays, "tables"), Fields(about, "tables")
    tables = {name: _table(name, form, body, numbers) for name, form in forms.items()}
    body.finish()
    numbers.finish()
    return tables


def _table(name: str, form: TableForm, body: Fields, numbers: Fields) -> Table:
    low_bits = form.how.low_bits
    if not low_bits:
        values = _entries(body, _VALUES + name, form, form.bits)
        return StepTable(values, form.bits, _guard(body, name, values))
    own = Fields(numbers.take(name, fields.mapping), f"tables.{name}")
    extra_bits = own.take("extra_bits", fields.within(0, _MAX_BITS - form.bits))
    values = _entries(body, _VALUES + name, form, form.bits + extra_bits)
    if not form.is_exp:
        own.finish()
        slopes = _entries(body, _SLOPES + name, form, form.bits + extra_bits)
        guard = _guard(body, name, values)
        return LinearTable(values, slopes, form.bits, low_bits, extra_bits, guard)
    factor_bits = own.take("factor_bits", fields.within(0, extra_bits // 2))
    unit = own.take("unit", fields.between(0.0, 1e3, open_low=True))
    own.finish()
    if factor_bits + unit * 2**low_bits * math.log2(math.e) >= values.dtype.itemsize * 8 - 1:
        raise DecodeError(f"{name}: a factor beyond its ring", field=name)
    return ExpTable(values, unit, form.bits, low_bits, extra_bits, factor_bits)


def _entries(body: Fields, name: str, form: TableForm, bits: int) -> Array:
    values = body.take(name, tensors.array_of(dtype_of(bits), 1 << form.how.index_bits))
    if int(values.max()) >> bits:
        raise DecodeError(f"{name}: an entry beyond {bits} bits", field=name)
    return values


def _guard(body: Fields, name: str, values: Array) -> Array | None:
    read = fields.optional(tensors.array_of(np.bool_, len(values)))
    guard = body.take(_GUARD + name, read, None)
    return None if guard is None else guard.astype(values.dtype)
