"""The spaces of one model under one key: which secret map acts on each axis.

Every map is drawn from a stream labelled with scheme, model digest, family, layer and space,
so maps can be made in any order and thrown away after their layer.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from veilrun.equivariant import groups
from veilrun.equivariant.codec import SCHEME, vocabulary_order
from veilrun.equivariant.covariant import Noise, covariant_key
from veilrun.equivariant.families.table import Axis, AxisName, Family, PerHead, Shape
from veilrun.equivariant.groups import Array, Strength
from veilrun.equivariant.maps import (
    Chain,
    Concat,
    Dual,
    Expand,
    Map,
    Permute,
    Rotate,
    Scale,
    interleave,
    permute,
)
from veilrun.keys import MasterKey, SecretStream

GLOBAL: Final = "-"
"""The layer word of spaces that the whole model shares."""


@dataclass(frozen=True, eq=False)
class HeadMaps:
    """The four maps of one layer's attention heads, and that of its query norm's gain."""

    query: Map
    key: Map
    value: Map
    context: Map
    query_gain: Map | None


class Spaces:
    """The secret maps of one model. `of` gives the map of an axis; safe to share by threads.

    label: the family's word in every derivation, with what sets this kind of copy apart.
    noise: of a covariant copy; `strength` then says nothing.
    vocabulary: another model's permutation, int64 [vocab_size], for a draft that guesses its ids.
    """

    def __init__(
        self,
        key: MasterKey,
        digest: str,
        label: str,
        family: Family,
        shape: Shape,
        strength: Strength,
        noise: Noise | None = None,
        vocabulary: npt.NDArray[np.int64] | None = None,
    ) -> None:
        self._key, self._digest, self._label = key, digest, label
        self._family, self._shape, self.noise = family, shape, noise
        self._residual = self._draw_residual(strength)
        if vocabulary is None:
            vocabulary = vocabulary_order(key, digest, label, shape.vocab_size)
        self._vocabulary = permute(vocabulary)
        # Every layer's maps are asked for by four or five tensors in a row.
        self._heads = functools.lru_cache(maxsize=4)(self._draw_heads)

    def stream(self, layer: int | None, space: str) -> SecretStream:
        """The secret stream of one space."""
        word = GLOBAL if layer is None else str(layer)
        return self._key.stream(SCHEME, self._digest, self._label, word, space)

    def sealed_size(self, axis: Axis, size: int) -> int:
        """Entries that an axis of `size` has under the key."""
        if axis == "residual" and isinstance(self._residual, Expand):
            return self._residual.n_out
        return size

    def of(self, axis: Axis, size: int, layer: int | None, expert: int | None) -> Map:
        """The map of an axis of `size` entries in a module of `layer` and `expert`."""
        if isinstance(axis, PerHead):
            parts = self._parts(axis.axes, size, layer, expert)
            return interleave(parts, self._shape.n_heads)
        if isinstance(axis, tuple):
            return Concat(tuple(self._parts(axis, size, layer, expert)))
        return self._one(axis, size, layer, expert)

    def head_gain(self, axis: AxisName, layer: int | None) -> Map:
        """The map of a query or key norm's gain vector [head_dim]."""
        gains = self._heads(layer).query_gain
        if gains is None:
            raise ValueError("these spaces were made without head norms")
        return gains if axis == "query" else Dual(gains)

    def expert_order(self, layer: int | None) -> npt.NDArray[np.int64]:
        """[n_experts]: entry i is the plain expert that becomes expert i."""
        return self.stream(layer, "experts").permutation(self._shape.n_experts)

    def _parts(
        self, axes: tuple[AxisName, ...], size: int, layer: int | None, expert: int | None
    ) -> list[Map]:
        # Attention axes know their size; those of an MLP share what is there equally.
        share = size // len(axes)
        return [self._one(axis, share, layer, expert) for axis in axes]

    def _one(self, axis: AxisName, size: int, layer: int | None, expert: int | None) -> Map:
        match axis:
            case "vocabulary":
                return self._vocabulary
            case "residual":
                return self._residual
            case "position":
                return Permute(torch.arange(size))
            case "query" | "key" | "value" | "context":
                one: Map = getattr(self._heads(layer), axis)
                return one
            case "experts":
                return permute(self.expert_order(layer))
            case "units" | "products":
                return self._units(size, layer, expert, scaled=axis == "products")

    def _draw_residual(self, strength: Strength) -> Map:
        stream, n = self.stream(None, "residual"), self._shape.hidden
        if self.noise is not None and self.noise.expansion is not None:
            return covariant_key(stream, n, self.noise.expansion)
        if strength == "permutation":
            draw = groups.permutation if self._family.centres else groups.signed_permutation
            return draw(stream, n)
        if self._family.centres:
            return groups.orthogonal_fixing_ones(stream, n, strength)
        return groups.orthogonal(stream, n, strength)

    def _units(self, size: int, layer: int | None, expert: int | None, *, scaled: bool) -> Map:
        word = "units" if expert is None else f"units of expert {expert}"
        stream = self.stream(layer, word)
        order = groups.permutation(stream, size)
        if not scaled:
            return order
        return Chain((order, Scale(torch.from_numpy(groups.power_of_two(stream, size)))))

    def _draw_heads(self, layer: int | None) -> HeadMaps:
        shape = self._shape
        n_groups, group = shape.n_kv_heads, shape.n_heads // shape.n_kv_heads
        stream = self.stream(layer, "heads")
        kv_order = stream.permutation(n_groups)
        query_order = np.concatenate(
            [head * group + stream.permutation(group) for head in kv_order]
        )
        planes, plane_scales, gains = self._draw_planes(stream)
        values = [groups.invertible_head(stream, shape.head_dim) for _ in range(n_groups)]
        matrices, scales = [m for m, _ in values], [s for _, s in values]
        return HeadMaps(
            query=_per_head(query_order, planes, plane_scales, group),
            key=Dual(_per_head(kv_order, planes, plane_scales, 1)),
            value=_per_head(kv_order, matrices, scales, 1),
            context=_per_head(query_order, matrices, scales, group),
            query_gain=gains,
        )

    def _draw_planes(self, stream: SecretStream) -> tuple[list[Array], list[Array], Map | None]:
        """Each key/value head's query/key matrix and scales, and the gain map of a head norm."""
        shape, n_groups = self._shape, self._shape.n_kv_heads
        if not self._family.has_head_norms:
            planes = [
                groups.rotary_head(stream, shape.head_dim, shape.rotary_dim)
                for _ in range(n_groups)
            ]
            return [matrix for matrix, _ in planes], [scale for _, scale in planes], None
        half = shape.head_dim // 2
        odd = stream.signs(half) < 0
        turns = [groups.quarter_turns(odd, stream.signs(half)) for _ in range(n_groups)]
        low = np.arange(half)
        swapped = np.concatenate(
            [np.where(odd, low + half, low), np.where(odd, low, low + half)]
        ).astype(np.int64)
        pair_scale = np.abs(groups.power_of_two(stream, half))
        scales = Scale(torch.from_numpy(np.concatenate([pair_scale, pair_scale])))
        # Before the norm nothing may scale; after it, the gains do.
        ones = [np.ones(shape.head_dim)] * n_groups
        return turns, ones, Chain((permute(swapped), scales))


def _per_head(
    order: npt.NDArray[np.int64], matrices: list[Array], scales: list[Array], group: int
) -> Map:
    """Heads in a new order, each turned and scaled as its key/value head's secret says."""
    head_dim = len(scales[0])
    entries = (order[:, None] * head_dim + np.arange(head_dim)).ravel()
    owners = order // group
    return Chain(
        (
            permute(entries),
            Rotate(torch.from_numpy(np.stack([matrices[one] for one in owners]))),
            Scale(torch.from_numpy(np.concatenate([scales[one] for one in owners]))),
        )
    )
