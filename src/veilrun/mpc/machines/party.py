"""A party, P1 or P2: works on shares and openings, online."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Final, final

from veilrun.mpc.arithmetic import Arithmetic, Direct, Key, Keys
from veilrun.mpc.shares import Array, Shared, wrap
from veilrun.mpc.tables import Table
from veilrun.mpc.weights import Matrix

PARTIES: Final = ("P1", "P2")

Watch = Callable[[Array, int], object]
"""Sees a share and how many of its low bits decide a rounding. For the twin in tests; a trace of
them is as secret as the share."""


def _ignore(share: Array, by: int) -> None: ...


@final
class Party:
    """One inference of one party.

    index: 0 for P1, 1 for P2. matrices: its shares of the weights. correlations: its halves, in
    the order of the plan (see `material`). tweak: as the dealer's. arithmetic: who does the work.
    watch_rounding: of party 1's shares; watch_mask: of either party's halves of masks.
    """

    def __init__(
        self,
        index: int,
        matrices: Mapping[str, Matrix],
        tables: Mapping[str, Table],
        correlations: Iterable[Array | Keys],
        tweak: bytes,
        *,
        arithmetic: Arithmetic | None = None,
        watch_rounding: Watch = _ignore,
        watch_mask: Watch = _ignore,
    ) -> None:
        self.index = index
        self.is_first = index == 0
        self.peer = PARTIES[1 - index]
        self.matrices = matrices
        self.tables = tables
        self.tweak = tweak
        self.flags: list[tuple[str, Shared]] = []
        self.arithmetic = Direct() if arithmetic is None else arithmetic
        self.watch_rounding = watch_rounding
        self.watch_mask = watch_mask
        self._correlations = deque(correlations)

    def take(self) -> Array:
        """The next mask or share."""
        correlation = self._correlations.popleft()
        if isinstance(correlation, tuple):
            raise AssertionError("the plan and the network differ: keys where a share is due")
        return correlation

    def key(self) -> Key:
        """The next point functions."""
        correlation = self._correlations.popleft()
        if not isinstance(correlation, tuple):
            raise AssertionError("the plan and the network differ: a share where keys are due")
        return self.index, correlation, self.tweak

    def flag(self, name: str, n_flagged: Shared) -> None:
        """Keep the count of a table's guard for the end."""
        self.flags.append((name, n_flagged))

    def in_ring(self, value: Array, bits: int, what: str) -> Shared:
        """A share of that ring; `what` is the twin's business."""
        return Shared(wrap(value, bits), bits)

    @property
    def n_left(self) -> int:
        """Correlations not taken; 0 at the end."""
        return len(self._correlations)
