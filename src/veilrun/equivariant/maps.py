"""Linear maps on one axis of a tensor, and their contragredients.

An activation x (a column) becomes A x under the key. A tensor that *writes* x gets A on that
axis; one that *reads* x gets A^-T, so that every inner product stays what it was. A key is a
chain of four kinds of steps, none of which costs more per weight in a wider model:
permutation, blocks of a fixed size, scale, and one reflection. `Expand` is the exception: dense,
and longer at its far end.

Every map acts on axis 0 of a [n, m] tensor and returns a new tensor of its dtype, [n, m] for all
but `Expand`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from veilrun.errors import UnsupportedModel


class Map(Protocol):
    """An invertible linear map on an axis of `size` entries."""

    @property
    def size(self) -> int:
        """Entries of the axis."""

    def write(self, x: Tensor) -> Tensor:
        """A x, for x of shape [size, m]."""

    def read(self, x: Tensor) -> Tensor:
        """A^-T x, for x of shape [size, m]."""


@dataclass(frozen=True, eq=False)
class Permute:
    """Entry i of the result is entry `order[i]`. Its own contragredient."""

    order: Tensor

    @property
    def size(self) -> int:
        return len(self.order)

    def write(self, x: Tensor) -> Tensor:
        return x.index_select(0, self.order)

    read = write


@dataclass(frozen=True, eq=False)
class Scale:
    """Entry i times `factors[i]`, a power of two up to sign, so that no digit is lost."""

    factors: Tensor

    @property
    def size(self) -> int:
        return len(self.factors)

    def write(self, x: Tensor) -> Tensor:
        return x * self.factors.to(x.dtype)[:, None]

    def read(self, x: Tensor) -> Tensor:
        return x / self.factors.to(x.dtype)[:, None]


@dataclass(frozen=True, eq=False)
class Rotate:
    """Consecutive blocks times orthogonal matrices [k, b, b]; `tail` [r, r] takes the rest.

    Its own contragredient, because orthogonal.
    """

    blocks: Tensor
    tail: Tensor | None = None
    _cast: dict[torch.dtype, tuple[Tensor, Tensor | None]] = field(default_factory=dict, repr=False)

    @property
    def size(self) -> int:
        return self._n_main + (0 if self.tail is None else len(self.tail))

    def _as(self, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        """Blocks and tail in `dtype`, converted once: slabs are many."""
        if dtype not in self._cast:
            tail = None if self.tail is None else self.tail.to(dtype)
            self._cast[dtype] = (self.blocks.to(dtype), tail)
        return self._cast[dtype]

    @property
    def _n_main(self) -> int:
        return self.blocks.shape[0] * self.blocks.shape[1]

    def write(self, x: Tensor) -> Tensor:
        blocks, tail = self._as(x.dtype)
        n_blocks, block, _ = blocks.shape
        out, n_main = torch.empty_like(x), self._n_main
        if n_blocks:
            shape = (n_blocks, block, x.shape[1])
            torch.bmm(blocks, x[:n_main].view(shape), out=out[:n_main].view(shape))
        if tail is not None:
            torch.mm(tail, x[n_main:], out=out[n_main:])
        return out

    read = write


@dataclass(frozen=True, eq=False)
class Reflect:
    """x - 2 v (v . x) for a unit vector v. Its own inverse and contragredient."""

    direction: Tensor

    @property
    def size(self) -> int:
        return len(self.direction)

    def write(self, x: Tensor) -> Tensor:
        direction = self.direction.to(x.dtype)
        return torch.addr(x, direction, direction @ x, alpha=-2.0)

    read = write


@dataclass(frozen=True, eq=False)
class Expand:
    """A longer axis: `writer` [N, n] times what writes, `reader` [N, n] times what reads.

    reader^T writer = 1, so inner products stay what they were; neither need be orthogonal.
    """

    writer: Tensor
    reader: Tensor
    _cast: dict[torch.dtype, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)

    @property
    def size(self) -> int:
        return self.writer.shape[1]

    @property
    def n_out(self) -> int:
        """N: entries of the longer axis."""
        return self.writer.shape[0]

    def _as(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        if dtype not in self._cast:
            self._cast[dtype] = (self.writer.to(dtype), self.reader.to(dtype))
        return self._cast[dtype]

    def write(self, x: Tensor) -> Tensor:
        return self._as(x.dtype)[0] @ x

    def read(self, x: Tensor) -> Tensor:
        return self._as(x.dtype)[1] @ x


@dataclass(frozen=True, eq=False)
class Keep:
    """The first entry as it is, `rest` on all others."""

    rest: Map

    @property
    def size(self) -> int:
        return 1 + self.rest.size

    def write(self, x: Tensor) -> Tensor:
        return torch.cat([x[:1], self.rest.write(x[1:])])

    def read(self, x: Tensor) -> Tensor:
        return torch.cat([x[:1], self.rest.read(x[1:])])


@dataclass(frozen=True, eq=False)
class Chain:
    """Several maps on the same axis, the first one first."""

    steps: tuple[Map, ...]

    @property
    def size(self) -> int:
        return self.steps[0].size

    def write(self, x: Tensor) -> Tensor:
        for step in self.steps:
            x = step.write(x)
        return x

    def read(self, x: Tensor) -> Tensor:
        for step in self.steps:
            x = step.read(x)
        return x


@dataclass(frozen=True, eq=False)
class Dual:
    """The contragredient of a map: what reads becomes what writes."""

    inner: Map

    @property
    def size(self) -> int:
        return self.inner.size

    def write(self, x: Tensor) -> Tensor:
        return self.inner.read(x)

    def read(self, x: Tensor) -> Tensor:
        return self.inner.write(x)


@dataclass(frozen=True, eq=False)
class Concat:
    """Maps side by side: the axis is the concatenation of theirs."""

    parts: tuple[Map, ...]

    @property
    def size(self) -> int:
        return sum(part.size for part in self.parts)

    def write(self, x: Tensor) -> Tensor:
        pieces = torch.split(x, [part.size for part in self.parts])
        return torch.cat([part.write(one) for part, one in zip(self.parts, pieces, strict=True)])

    def read(self, x: Tensor) -> Tensor:
        pieces = torch.split(x, [part.size for part in self.parts])
        return torch.cat([part.read(one) for part, one in zip(self.parts, pieces, strict=True)])


def interleave(parts: Sequence[Map], n_groups: int) -> Map:
    """Maps whose axes are interleaved in groups: group 0 of each part, then group 1 of each.

    GPT-NeoX stores query, key and value so, a group per head.
    """
    sizes = [part.size for part in parts]
    if any(size % n_groups for size in sizes):
        raise UnsupportedModel(f"axes of {sizes} do not divide into {n_groups} groups")
    starts = np.cumsum([0, *sizes[:-1]])
    place = np.concatenate(
        [
            np.arange(size // n_groups) + start + group * (size // n_groups)
            for group in range(n_groups)
            for start, size in zip(starts, sizes, strict=True)
        ]
    )
    to_interleaved = permute(place)
    to_concatenated = permute(np.argsort(place))
    return Chain((to_concatenated, Concat(tuple(parts)), to_interleaved))


def permute(order: npt.NDArray[np.int64]) -> Permute:
    """The permutation whose entry i takes entry order[i]."""
    return Permute(torch.from_numpy(np.ascontiguousarray(order)))
