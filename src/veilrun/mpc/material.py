"""One party's correlations of one inference: from its stream and what the dealer sent it.

The dealer's bytes are the plan's correlations in order, packed, with nothing between: for party
1 the corrections of point functions; for party 2 those and its halves of shared values. All of
it is taken apart before the inference begins, so that online nothing is left but to use it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from veilrun.errors import DecodeError
from veilrun.mpc import ring
from veilrun.mpc.arithmetic import Keys
from veilrun.mpc.plan import Correlation, Mask, Plan, Share, packed_bytes
from veilrun.mpc.prg import Stream
from veilrun.mpc.shares import Array, dtype_of


def halves(
    plan: Plan, index: int, stream: Stream, dealt: bytes | memoryview
) -> Iterator[Array | Keys]:
    """What party `index` (0 or 1) takes, in order; of use only when all of it was read.

    Raises:
        DecodeError: `dealt` is not what the dealer sends for this plan.
    """
    reader = _Reader(memoryview(dealt), index, stream)
    for correlation in plan.correlations:
        yield reader.take(correlation)
    if reader.n_left:
        raise DecodeError(f"material with {reader.n_left} bytes too many for this inference")


class _Reader:
    """Takes one correlation after the other from the stream and from the dealer's bytes."""

    def __init__(self, dealt: memoryview, index: int, stream: Stream) -> None:
        self._dealt = dealt
        self._index = index
        self._stream = stream

    @property
    def n_left(self) -> int:
        return len(self._dealt)

    def take(self, wanted: Correlation) -> Array | Keys:
        if isinstance(wanted, Mask) or (isinstance(wanted, Share) and self._index == 0):
            return self._stream.uniform(wanted.shape, wanted.bits)
        if isinstance(wanted, Share):
            packed = self._next(packed_bytes(wanted.shape, wanted.bits))
            n_values = int(np.prod(wanted.shape, dtype=np.int64))
            words = ring.unpack_bits(packed, wanted.bits, n_values, dtype_of(wanted.bits))
            return words.reshape(wanted.shape)
        seeds = self._stream.seeds(wanted.n_keys)
        each = wanted.domain.correction_bytes
        corrections = np.frombuffer(self._next(wanted.n_keys * each), np.uint8)
        return seeds, corrections.reshape(wanted.n_keys, each)

    def _next(self, n_bytes: int) -> memoryview:
        if n_bytes > len(self._dealt):
            raise DecodeError("material that ends too early for this inference")
        head, self._dealt = self._dealt[:n_bytes], self._dealt[n_bytes:]
        return head
