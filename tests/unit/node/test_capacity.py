"""Units come back and turns are kept, however the holders end."""

from __future__ import annotations

import asyncio
import random

from veilrun.node.capacity import Capacity


async def test_loans_never_exceed_the_total_and_all_come_back() -> None:
    capacity, most = Capacity(5), 0

    async def borrow(amount: int) -> None:
        nonlocal most
        async with capacity.hold(amount):
            most = max(most, capacity.n_on_loan)
            await asyncio.sleep(0.001)

    await asyncio.gather(*(borrow(1 + i % 5) for i in range(40)))
    assert most == 5
    assert (capacity.n_on_loan, capacity.n_waiting) == (0, 0)


async def test_first_come_first_served_even_if_a_small_one_would_fit() -> None:
    capacity, order = Capacity(3), []

    async def borrow(name: str, amount: int) -> None:
        async with capacity.hold(amount):
            order.append(name)
            await asyncio.sleep(0)

    await asyncio.gather(borrow("a", 2), borrow("large", 3), borrow("small", 1))
    assert order == ["a", "large", "small"]


async def test_one_that_gives_up_lets_the_next_through() -> None:
    capacity = Capacity(2)
    async with capacity.hold(1):
        large = asyncio.create_task(capacity.hold(2).__aenter__())
        small = asyncio.create_task(capacity.hold(1).__aenter__())
        await asyncio.sleep(0)
        assert capacity.n_waiting == 2
        large.cancel()
        await asyncio.wait_for(small, 1)
        assert capacity.n_waiting == 0


async def test_cancelled_in_the_moment_of_its_turn_gives_the_units_back() -> None:
    capacity = Capacity(1)
    first = capacity.hold(1)
    await first.__aenter__()
    waiting = asyncio.create_task(capacity.hold(1).__aenter__())
    await asyncio.sleep(0)
    await first.__aexit__(None, None, None)  # its turn has come, but it has not run yet
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert capacity.n_on_loan == 0


async def test_random_lives_leave_nothing_behind() -> None:
    chance, capacity = random.Random(1), Capacity(7)

    async def live(amount: int) -> None:
        async with capacity.hold(amount):
            await asyncio.sleep(chance.random() / 200)
            if chance.random() < 0.2:
                raise ValueError

    tasks = [asyncio.create_task(live(chance.randint(1, 7))) for _ in range(200)]
    for task in chance.sample(tasks, 80):
        await asyncio.sleep(0.0005)
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert (capacity.n_on_loan, capacity.n_waiting) == (0, 0)
    assert capacity.fits_now(7)
