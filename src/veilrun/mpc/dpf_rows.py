"""Tables as `dpf` reads them, and as its kernel does where they are of straight lines."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from veilrun.mpc import native

if TYPE_CHECKING:
    from veilrun.mpc.dpf import Domain

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Rows:
    """Tables made ready for many look-ups; from `dpf.unroll`.

    windows: [T, width], such that tables[t, (i - j) mod size] is windows[t, (-i mod size) + j],
    with a margin. payload_of: int32 [T].
    """

    windows: Array
    payload_of: Array
    domain: Domain

    @cached_property
    def addresses(self) -> tuple[int, int]:
        """Of windows and of payload_of."""
        return native.address(self.windows), native.address(self.payload_of)

    @cached_property
    def of_lines(self) -> bool:
        """Whether they are what `interpolate` takes."""
        chosen = tuple(self.payload_of)
        return chosen in ((0, 0, 1), (0, 0, 1, 0)) and np.array_equal(*self.windows[1:3])

    @cached_property
    def quarters(self) -> Quarters:
        """The tables of lines as `dpf_lines.c` reads them."""
        return Quarters(self)


class Quarters:
    """Values and slopes in rows of 64 bytes, 16 bytes of each quarter of the domain.

    With l lanes in 16 bytes, row (r, y) has the items r + l y + q size / 4 of the window, and the
    l - 1 after each, for q = 0..3: r = 0..l - 1, y = 0.. 5/4 size / l - 1. A row of the guard is a
    bit for each of these, in a uint32. addresses: of the three; 0 for no guard.
    are_narrow: whether the slopes, of 32 bits, are signed numbers of 16.
    """

    def __init__(self, rows: Rows) -> None:
        size, item = rows.domain.size, rows.domain.dtype.itemsize
        lane = np.arange(16 // item)
        n_pieces = size // len(lane)
        first = np.add.outer(lane, len(lane) * np.arange(n_pieces + n_pieces // 4))
        places = first[..., None, None] + (size // 4 * np.arange(4)[:, None] + lane)
        places = places.reshape(-1, 4 * len(lane)) % size
        slopes = rows.windows[1]
        self.are_narrow = item == 4 and bool((slopes + slopes.dtype.type(2**15) < 2**16).all())
        parts = [np.take(rows.windows[t], places).reshape(-1) for t in (0, 1)]
        self._lines = native.aligned(sum(part.nbytes for part in parts))
        self._lines[:] = np.concatenate(parts).view(np.uint8)
        start = native.address(self._lines)
        self.addresses = [start, start + parts[0].nbytes, 0]
        if len(rows.windows) == 4:
            bits = np.left_shift(1, np.arange(places.shape[1], dtype=np.uint32), dtype=np.uint32)
            marked = np.take(rows.windows[3], places).astype(np.uint32)
            self._guard = (marked * bits).sum(axis=1, dtype=np.uint32)
            self.addresses[2] = native.address(self._guard)
