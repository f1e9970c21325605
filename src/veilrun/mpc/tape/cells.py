"""Where values lie in a tape's memory: views by shape and strides, as numpy's arrays are.

A `Room` is a piece of memory, free again when nothing refers to it any more: recording allocates
as running would, and a tape's memory is as large as the most that is alive at once.
"""

from __future__ import annotations

import itertools
import math
import weakref
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, final

from veilrun.mpc.plan import Shape

_ALIGNMENT: Final = 64


@final
class Room:
    """start, n_bytes: in the memory."""

    __slots__ = ("__weakref__", "n_bytes", "start")

    def __init__(self, start: int, n_bytes: int) -> None:
        self.start = start
        self.n_bytes = n_bytes


@final
class Memory:
    """Hands out rooms. n_bytes: how much there must be of it."""

    def __init__(self) -> None:
        self.n_bytes = 0
        self._free: dict[int, list[int]] = defaultdict(list)

    def room(self, n_bytes: int) -> Room:
        """A room that nothing else has."""
        size = -(-max(n_bytes, 1) // _ALIGNMENT) * _ALIGNMENT
        if self._free[size]:
            start = self._free[size].pop()
        else:
            start, self.n_bytes = self.n_bytes, self.n_bytes + size
        room = Room(start, n_bytes)
        weakref.finalize(room, self._free[size].append, start)
        return room


@final
@dataclass(frozen=True, slots=True, eq=False)
class Cells:
    """What numpy has arrays for: the part of the interface that networks and gates rearrange by.

    item: bytes of an element. strides: in bytes. copied: makes a view into cells without gaps, in
    C order.
    """

    room: Room
    start: int
    shape: Shape
    strides: Shape
    item: int
    copied: Callable[[Cells], Cells]

    @classmethod
    def new(cls, room: Room, shape: Shape, item: int, copied: Callable[[Cells], Cells]) -> Cells:
        """All of a room, in C order."""
        return cls(room, room.start, shape, _dense(shape, item), item, copied)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def is_dense(self) -> bool:
        """Whether the elements lie in C order, without gaps."""
        pairs = zip(self.shape, self.strides, _dense(self.shape, self.item), strict=True)
        return all(length == 1 or stride == dense for length, stride, dense in pairs)

    def dense(self) -> Cells:
        """The same elements without gaps; a copy only where it must be."""
        return self if self.is_dense else self.copied(self)

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"Cells(shape={self.shape}, item={self.item})"

    def reshape(self, *shape: Any) -> Cells:
        """As numpy's; one length may be -1."""
        wanted = list(shape[0] if len(shape) == 1 and isinstance(shape[0], tuple) else shape)
        if -1 in wanted:
            known = -math.prod(wanted)
            wanted[wanted.index(-1)] = self.size // known
        if math.prod(wanted) != self.size:
            raise ValueError(f"cannot reshape {self.shape} into {tuple(wanted)}")
        lengths = tuple(wanted)
        return replace(self.dense(), shape=lengths, strides=_dense(lengths, self.item))

    def transpose(self, *axes: int) -> Cells:
        """As numpy's."""
        return replace(
            self,
            shape=tuple(self.shape[axis] for axis in axes),
            strides=tuple(self.strides[axis] for axis in axes),
        )

    def __getitem__(self, key: int | slice | tuple[slice, ...]) -> Cells:
        """A number on the first axis, or slices without steps."""
        if isinstance(key, int):
            if not 0 <= key < len(self):
                raise IndexError(f"no row {key} of {len(self)}")
            first = self[key : key + 1]
            return replace(first, shape=first.shape[1:], strides=first.strides[1:])
        slices = key if isinstance(key, tuple) else (key,)
        start, shape = self.start, list(self.shape)
        for axis, one in enumerate(slices):
            begin, end, by = one.indices(self.shape[axis])
            if by != 1:
                raise ValueError("cells are not sliced with a step")
            start += begin * self.strides[axis]
            shape[axis] = max(0, end - begin)
        return replace(self, start=start, shape=tuple(shape))

    def repeated(self, shape: Shape) -> Cells:
        """As numpy's `broadcast_to`."""
        lengths, strides = (1,) * (len(shape) - len(self.shape)) + self.shape, self.strides
        strides = (0,) * (len(shape) - len(self.shape)) + strides
        pairs = zip(lengths, strides, shape, strict=True)
        return replace(
            self, shape=shape, strides=tuple(s if n == wanted else 0 for n, s, wanted in pairs)
        )


def _dense(shape: Shape, item: int) -> Shape:
    steps = itertools.accumulate(reversed(shape[1:]), lambda a, b: a * b, initial=1)
    return tuple(item * step for step in reversed(list(steps)))[-len(shape) :] if shape else ()


def even_runs(numbers: Sequence[int]) -> list[tuple[int, int, int, int]]:
    """Runs of numbers that rise evenly: where from and to, the first, and the rise."""
    runs: list[tuple[int, int, int, int]] = []
    first, n = 0, len(numbers)
    while first < n:
        end = first + 1
        rise = numbers[end] - numbers[first] if end < n else 0
        while end < n and numbers[end] - numbers[end - 1] == rise:
            end += 1
        runs.append((first, end, numbers[first], rise))
        first = end
    return runs
