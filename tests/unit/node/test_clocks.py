"""A process's own time passes while it computes, and jumps where it would only wait."""

from __future__ import annotations

import asyncio
import time

from veilrun.node.clocks import CpuClock, WallClock


def burn(seconds: float) -> None:
    start = time.process_time()
    while time.process_time() - start < seconds:
        pass


async def test_the_walls_time_passes_in_sleep():
    clock = WallClock()
    start = clock.now()
    await clock.until(start + 0.05, lambda: True)
    assert clock.now() - start >= 0.05


async def test_own_time_passes_with_work_only():
    clock = CpuClock()
    start = clock.now()
    time.sleep(0.2)
    assert clock.now() - start < 0.1
    burn(0.1)
    assert clock.now() - start >= 0.1


async def test_own_time_jumps_where_nothing_is_computed():
    clock = CpuClock()
    start, on_the_wall = clock.now(), time.perf_counter()
    await clock.until(start + 60.0, lambda: True)
    assert 60.0 <= clock.now() - start < 61.0
    assert time.perf_counter() - on_the_wall < 10.0


async def test_own_time_does_not_jump_over_work():
    clock = CpuClock()
    work = asyncio.create_task(asyncio.to_thread(burn, 0.2))
    start = clock.now()
    await clock.until(start + 60.0, work.done)
    assert work.done()
    assert clock.now() - start >= 60.0
