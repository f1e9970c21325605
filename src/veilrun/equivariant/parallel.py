"""Tensors side by side: one worker thread per core, one torch thread per worker.

Torch's own threads split every small product and wait for each other; whole tensors do not.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

import torch

MAX_WORKERS: Final = 8
"""Beyond this the disk decides, and every worker holds a tensor and its wide copy."""

T = TypeVar("T")
R = TypeVar("R")


def in_parallel(work: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
    """The results of `work` on each item, in order; the first exception stops the rest.

    Memory: as many items at work as this process may use cores, up to MAX_WORKERS.
    """
    n_threads = torch.get_num_threads()
    n_workers = min(MAX_WORKERS, len(os.sched_getaffinity(0)))
    pool = ThreadPoolExecutor(n_workers, initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield from pool.map(work, items)
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(n_threads)
