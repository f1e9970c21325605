"""Tensors side by side: one worker thread per core, one torch thread per worker.

Torch's own threads split every small product and wait for each other; whole tensors do not.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


def in_parallel(work: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
    """The results of `work` on each item, in order; the first exception stops the rest.

    Memory: as many items at work as there are cores.
    """
    n_threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(os.cpu_count() or 1, initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield from pool.map(work, items)
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(n_threads)
