"""Several streams as one: order, errors, and that nothing is left running."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from veilrun.serve.fan_in import fan_in


class Streams:
    """Streams that count how many run and how many were closed."""

    def __init__(self) -> None:
        self.n_running = self.n_at_most = self.n_closed = 0

    async def numbers(self, n: int, error: Exception | None = None):
        self.n_running += 1
        self.n_at_most = max(self.n_at_most, self.n_running)
        try:
            for number in range(n):
                await asyncio.sleep(0)
                yield number
            if error is not None:
                raise error
        finally:
            self.n_running -= 1
            self.n_closed += 1


async def test_all_items_come_and_only_so_many_run_at_once():
    streams = Streams()
    merged = fan_in([streams.numbers(200) for _ in range(7)], n_at_once=3)
    assert sorted([item async for item in merged]) == sorted(list(range(200)) * 7)
    assert (streams.n_at_most, streams.n_closed) == (3, 7)


async def test_an_error_ends_all():
    streams = Streams()
    merged = fan_in([streams.numbers(3, OSError("x")), streams.numbers(10**9)], n_at_once=2)
    with pytest.raises(OSError, match="x"):
        async for _ in merged:
            pass
    assert streams.n_running == 0


async def test_leaving_closes_all():
    streams = Streams()
    async with aclosing(fan_in([streams.numbers(10**9) for _ in range(3)], n_at_once=2)) as merged:
        async for _ in merged:
            break
    assert (streams.n_running, streams.n_closed) == (0, 2)
