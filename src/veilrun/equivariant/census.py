"""Who is who in a checkpoint: every tensor finds its row in the family's table, or is named."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Literal, cast

from veilrun.checkpoint.folder import Checkpoint
from veilrun.equivariant.families.table import (
    Axis,
    Buffer,
    Embedding,
    Family,
    HeadNorm,
    Linear,
    Norm,
    PerHead,
    Row,
    Shape,
)
from veilrun.equivariant.tensors import TORCH_DTYPES
from veilrun.errors import CheckpointError, UnsupportedModel

Part = Literal["weight", "bias"]


@dataclass(frozen=True, slots=True)
class Found:
    """The table's word on one tensor."""

    row: Row
    part: Part
    layer: int | None
    expert: int | None

    @property
    def module(self) -> str:
        """The full name of its module."""
        return self.row.name.format(layer=self.layer, expert=self.expert)


@dataclass(frozen=True, slots=True)
class Census:
    """found: tensor name -> row. modules: module's full name -> part -> tensor name."""

    family: Family
    found: dict[str, Found] = field(default_factory=dict)
    modules: dict[str, dict[Part, str]] = field(default_factory=lambda: defaultdict(dict))

    @property
    def head(self) -> Linear:
        """The row of the module that reads out the vocabulary."""
        for row in self.family.rows:
            if isinstance(row, Linear) and row.name == self.family.head:
                return row
        raise ValueError(f"family {self.family.name} has no row for its head")

    def norm_before(self, row: Linear, layer: int | None) -> str | None:
        """The full name of the norm whose output `row` reads, if there is one."""
        if row.after is None:
            return None
        for norm in self.family.rows:
            if isinstance(norm, Norm) and norm.is_called(row.after):
                return norm.name.format(layer=layer)
        raise ValueError(f"family {self.family.name}: no row for the norm {row.after}")


def take_census(checkpoint: Checkpoint, family: Family, shape: Shape, *, tied: bool) -> Census:
    """Match every tensor with its row.

    Raises:
        UnsupportedModel: tensors that no row names, or whose dtype no key can transform.
        CheckpointError: tensors are missing, or their shapes contradict the configuration.
    """
    patterns = [(re.compile(_pattern(row)), row) for row in family.rows]
    bare = bool(family.prefix) and not any(name.startswith(family.prefix) for name in checkpoint)
    census, unknown = Census(family), []
    for name in checkpoint:
        full = family.prefix + name if bare and not name.startswith(family.head) else name
        found = _match(full, patterns, shape)
        if found is None:
            unknown.append(name)
        elif isinstance(found.row, Buffer):
            continue
        elif checkpoint[name].dtype not in TORCH_DTYPES:
            unknown.append(f"{name} (dtype {checkpoint[name].dtype})")
        else:
            census.found[name] = found
            census.modules[found.module][found.part] = name
    if unknown:
        raise UnsupportedModel(
            f"no private form in family {family.name} for: {', '.join(sorted(unknown))}"
        )
    _check_complete(census, shape, tied=tied)
    _check_shapes(checkpoint, census, shape)
    return census


def _match(name: str, patterns: list[tuple[re.Pattern[str], Row]], shape: Shape) -> Found | None:
    for pattern, row in patterns:
        if match := pattern.fullmatch(name):
            numbers = {word: int(text) for word, text in match.groupdict().items()}
            layer, expert = numbers.get("layer"), numbers.get("expert")
            if (layer or 0) >= shape.n_layers or (expert or 0) >= max(shape.n_experts, 1):
                return None
            return Found(row, cast(Part, name.rpartition(".")[2]), layer, expert)
    return None


def _pattern(row: Row) -> str:
    name = re.escape(row.name)
    for word in ("layer", "expert"):
        name = name.replace(rf"\{{{word}\}}", rf"(?P<{word}>\d+)")
    if isinstance(row, Buffer):
        return name
    has_bias = isinstance(row, Linear) or (isinstance(row, Norm) and row.kind == "layer")
    return name + (r"\.(?:weight|bias)" if has_bias else r"\.weight")


def _check_complete(census: Census, shape: Shape, *, tied: bool) -> None:
    missing = _missing_experts(census, shape)
    for row in census.family.rows:
        may_lack = isinstance(row, Linear) and (row.optional or (tied and row is census.head))
        if isinstance(row, Buffer) or may_lack:
            continue
        parts: list[Part] = ["weight"]
        if isinstance(row, Norm) and row.kind == "layer":
            parts.append("bias")
        for layer in range(shape.n_layers) if "{layer}" in row.name else (0,):
            module = row.name.format(layer=layer)
            present = census.modules.get(module, {})
            missing += [f"{module}.{part}" for part in parts if part not in present]
    if missing:
        more = f" and {len(missing) - 8} more" if len(missing) > 8 else ""
        raise CheckpointError(f"the checkpoint lacks {', '.join(missing[:8])}{more}")


def _missing_experts(census: Census, shape: Shape) -> list[str]:
    """A layer with a router needs every expert."""
    routers = {row.name for row in census.family.rows if getattr(row, "out", None) == "experts"}
    layers = [one.layer for one in census.found.values() if one.row.name in routers]
    wanted = [
        row.name.format(layer=layer, expert=expert)
        for row in census.family.rows
        if "{expert}" in row.name
        for layer in layers
        for expert in range(shape.n_experts)
    ]
    return [f"{name}.weight" for name in wanted if name not in census.modules]


def _check_shapes(checkpoint: Checkpoint, census: Census, shape: Shape) -> None:
    wrong = []
    for name, found in census.found.items():
        actual, wanted = checkpoint[name].shape, _wanted_shape(found, shape)
        fits = len(actual) == len(wanted) and all(
            size == one or size is None for size, one in zip(wanted, actual, strict=True)
        )
        if not fits:
            text = " x ".join("any" if size is None else str(size) for size in wanted)
            wrong.append(f"{name} is {' x '.join(map(str, actual))}, not {text}")
    if wrong:
        raise CheckpointError(f"shapes contradict config.json: {'; '.join(wrong[:8])}")


def _wanted_shape(found: Found, shape: Shape) -> tuple[int | None, ...]:
    match found.row:
        case Linear() as row if found.part == "bias":
            return (_axis_size(row.out, shape),)
        case Linear() as row:
            sizes = (_axis_size(row.out, shape), _axis_size(row.into, shape))
            return sizes[::-1] if row.transposed else sizes
        case Embedding() as row:
            return (_axis_size(row.index, shape), shape.hidden)
        case HeadNorm():
            return (shape.head_dim,)
        case _:
            return (shape.hidden,)


def _axis_size(axis: Axis, shape: Shape) -> int | None:
    """Entries of an axis; None where the configuration does not fix them here."""
    if isinstance(axis, PerHead | tuple):
        parts = [_axis_size(one, shape) for one in (axis if isinstance(axis, tuple) else axis.axes)]
        return sum(one for one in parts if one is not None) if None not in parts else None
    sizes: dict[str, int] = {
        "vocabulary": shape.vocab_size,
        "residual": shape.hidden,
        "query": shape.n_heads * shape.head_dim,
        "context": shape.n_heads * shape.head_dim,
        "key": shape.n_kv_heads * shape.head_dim,
        "value": shape.n_kv_heads * shape.head_dim,
        "experts": shape.n_experts,
    }
    return sizes.get(axis)
