"""A fixed number of units, lent in the order they were asked for. One event loop, no threads.

Invariant: the units on loan never exceed the total, and every unit comes back, whether its
holder ends, fails, or is cancelled, before or after its turn.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Capacity:
    """`total` units. First come, first served: a large loan is not overtaken by small ones."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._free = total
        self._queue: deque[tuple[asyncio.Future[None], int]] = deque()

    @property
    def n_on_loan(self) -> int:
        """Units lent at this moment."""
        return self.total - self._free

    @property
    def n_waiting(self) -> int:
        """How many borrowers wait for their turn."""
        return sum(not turn.done() for turn, _ in self._queue)

    def fits_now(self, amount: int) -> bool:
        """Whether `hold(amount)` would start without waiting."""
        return not self.n_waiting and amount <= self._free

    @asynccontextmanager
    async def hold(self, amount: int) -> AsyncIterator[None]:
        """Wait for `amount` units (at most `total`), and give them back when the block ends."""
        await self._take(amount)
        try:
            yield
        finally:
            self._give(amount)

    async def _take(self, amount: int) -> None:
        if self.fits_now(amount):
            self._free -= amount
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append((turn, amount))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # its turn came in the moment it gave up
                self._give(amount)
            else:
                self._lend()  # whoever stands behind may fit
            raise

    def _give(self, amount: int) -> None:
        self._free += amount
        self._lend()

    def _lend(self) -> None:
        while self._queue:
            turn, amount = self._queue[0]
            if not turn.cancelled():
                if amount > self._free:
                    return
                self._free -= amount
                turn.set_result(None)
            self._queue.popleft()
