"""What time is, for a measurement: the wall's, or this process's own.

On a machine that others use too, the wall clock measures them as well: two threads that wait for
one another lose threefold when one core is taken away. So measurements on one core may count this
process's CPU seconds instead: what a wall clock would show on a core of one's own. Then time only
passes while something is computed; where nothing is, it jumps to the next request.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final, Protocol

_LOOK_S: Final = 0.002


class Clock(Protocol):
    """Seconds, from some beginning."""

    def now(self) -> float:
        """This moment."""

    async def until(self, moment: float, is_idle: Callable[[], bool]) -> None:
        """Wait for a moment. is_idle: nothing is computed before it. One waits at a time."""


class WallClock:
    """Everybody's time."""

    def now(self) -> float:
        return time.perf_counter()

    async def until(self, moment: float, is_idle: Callable[[], bool]) -> None:
        await asyncio.sleep(max(0.0, moment - self.now()))


class CpuClock:
    """Seconds that this process computes, all threads together: for processes with one core."""

    def __init__(self) -> None:
        self._jumped = 0.0

    def now(self) -> float:
        return time.process_time() + self._jumped

    async def until(self, moment: float, is_idle: Callable[[], bool]) -> None:
        while (left := moment - self.now()) > 0:
            if is_idle():
                self._jumped += left
            else:
                await asyncio.sleep(_LOOK_S)
