"""What a piece of work costs: seconds, CPU seconds of all cores, and memory.

Memory is how far the resident size of this process grew above where it began, sampled by a
thread. Memory that an earlier piece left to the process is used again unseen, so the figure is
a lower bound.
"""

from __future__ import annotations

import gc
import threading
import time
from typing import Final

import psutil

_PERIOD_S: Final = 0.02


class Meter:
    """A block's cost; read it after the block, also after one that raised."""

    def __init__(self) -> None:
        self.elapsed_s = self.cpu_s = 0.0
        self.extra_bytes = 0
        self._process = psutil.Process()
        self._done = threading.Event()
        self._sampler = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Meter:
        gc.collect()
        self._before_bytes = self._process.memory_info().rss
        self._sampler.start()
        self._began_s, self._cpu_began_s = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.elapsed_s = time.perf_counter() - self._began_s
        self.cpu_s = time.process_time() - self._cpu_began_s
        self._done.set()
        self._sampler.join()

    def _sample(self) -> None:
        while True:
            grown = self._process.memory_info().rss - self._before_bytes
            self.extra_bytes = max(self.extra_bytes, grown)
            if self._done.wait(_PERIOD_S):
                return
