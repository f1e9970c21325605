"""Several streams as one, in the order in which their items come.

Invariant: when the reader leaves, every stream has been closed; an error in one ends all.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final, TypeVar

T = TypeVar("T")

_MAX_WAITING: Final = 64
"""Items that wait for a slow reader, before the streams wait for it too."""


@dataclass(frozen=True, slots=True)
class _End:
    """One stream is over; `error` is what ended it, if it did not end by itself."""

    error: Exception | None


async def fan_in(streams: Sequence[AsyncGenerator[T]], *, n_at_once: int) -> AsyncGenerator[T]:
    """Yield the items of all streams; at most `n_at_once` of them run at a time."""
    items: asyncio.Queue[T | _End] = asyncio.Queue(_MAX_WAITING)
    places = asyncio.Semaphore(n_at_once)

    async def run(stream: AsyncGenerator[T]) -> None:
        error = None
        try:
            async with places, aclosing(stream) as items_of_stream:
                async for item in items_of_stream:
                    await items.put(item)
        except Exception as caught:  # noqa: BLE001 - the reader raises it
            error = caught
        await items.put(_End(error))

    tasks = [asyncio.create_task(run(stream)) for stream in streams]
    n_running = len(tasks)
    try:
        while n_running:
            item = await items.get()
            if not isinstance(item, _End):
                yield item
            elif item.error is not None:
                raise item.error
            else:
                n_running -= 1
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
