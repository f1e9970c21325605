"""The native kernel: a shared library of C loops, found where it was built, called with ctypes.

It is optional. `KERNEL` is what `ring` and `dpf` use, and None where the package was installed
without a C compiler; they then compute the same with numpy. A test that wants one or the other
sets `KERNEL`.

Invariant: nothing here checks a shape. The callers have, and hand over C-contiguous arrays.
"""

from __future__ import annotations

import contextlib
import ctypes
import enum
import mmap
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

_NAME = "veilrun.mpc._kernel"
_ABI = 8
_ALIGNMENT = 64
_LARGE_BYTES = 1 << 20
_LARGE_PAGE_BYTES = 1 << 21
_MAX_SCRATCH_BYTES = 1 << 18

_PTR, _I32, _I64, _U32 = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64, ctypes.c_uint32


class Feature(enum.IntFlag):
    """What a processor can do; the values are those of `kernel.h`."""

    AVX2 = 1
    AVX512 = 2
    IFMA = 4
    VNNI = 8
    AES = 16
    VAES = 32


_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "veilrun_pack_bits": (_I32, _PTR, _I64, _I32, _PTR),
    "veilrun_unpack_bits": (_I32, _PTR, _I64, _I32, _I64, _PTR),
    "veilrun_pack_sum": (_I32, _PTR, _PTR, _I64, _I32, _PTR),
    "veilrun_add_packed": (_I32, _PTR, _PTR, _PTR, _I64, _I32, _I64, _PTR),
    "veilrun_gather": (_I32, _PTR, _I64, _I64, _PTR, _PTR),
    "veilrun_shrink": (_I32, _I32, _I64, _I32, _I32, _I32, _PTR, _PTR),
    "veilrun_extend": (_I32, _I32, _I32, _I64, _I32, _I32, *[_PTR] * 7),
    "veilrun_times": (_I32, _I32, _I64, _I64, _I32, _I32, _I32, *[_PTR] * 8),
    "veilrun_squares": (_I32, _I32, _I64, _I64, _I32, _I32, _I32, *[_PTR] * 6),
    "veilrun_pack_strips": (_I32, _PTR, _I64, _I64, _PTR),
    "veilrun_matmul": (_U32, _I32, _PTR, _I64, _I64, _PTR, _I64, _I64, _I64, _PTR),
    "veilrun_matmul_batch": (_U32, _I32, _PTR, _PTR, _I64, _I64, _I64, _I64, _PTR, _PTR),
    "veilrun_dpf_lookup": (_PTR, _PTR, _PTR, _I32, _PTR, _I64, _I64, _PTR, _PTR),
    "veilrun_dpf_lines": (_PTR, _PTR, _PTR, _PTR),
    "veilrun_dpf_expand": (_PTR, _PTR, _PTR),
    "veilrun_dpf_generate": (_PTR, _PTR, _PTR, _PTR, _PTR),
    "veilrun_run": (_PTR, _PTR, _I64, _I64, _I32),
}


class _Scratch(threading.local):
    """Each thread's rooms by the number of levels."""

    def __init__(self) -> None:
        self.of: dict[int, tuple[Array, int]] = {}


_SCRATCH = _Scratch()


@dataclass(frozen=True, slots=True)
class Kernel:
    """The library and the processor features it may use.

    `call("pack_bits", ...)` calls `veilrun_pack_bits`; numpy arrays go as their addresses. The
    interpreter lock is free meanwhile.
    """

    library: ctypes.CDLL
    features: Feature

    @property
    def has_aes(self) -> bool:
        """Whether it serves `dpf`."""
        return Feature.AES in self.features

    @property
    def has_lines(self) -> bool:
        """Whether it serves the lines of `dpf`."""
        return Feature.VAES | Feature.VNNI in self.features

    def limited(self, features: Feature) -> Kernel:
        """The same library, without the features that are not named."""
        return Kernel(self.library, self.features & features)

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function that returns nothing."""
        values = [address(one) if type(one) is np.ndarray else one for one in arguments]
        getattr(self.library, f"veilrun_{name}")(*values)

    def keep_memory(self) -> None:
        """Let this process keep freed memory for the next array; for processes that compute."""
        self.library.veilrun_keep_memory()

    def dpf_scratch_bytes(self, n_levels: int) -> int:
        """What the nodes of a group of trees take."""
        return int(self.library.veilrun_dpf_scratch_bytes(n_levels))

    def dpf_scratch(self, n_levels: int) -> tuple[Array, int]:
        """Room for the nodes of a group of trees, this thread's own, and its address."""
        room = _SCRATCH.of.get(n_levels)
        if room is None:
            array = aligned(self.dpf_scratch_bytes(n_levels))
            room = array, address(array)
            if array.nbytes <= _MAX_SCRATCH_BYTES:
                _SCRATCH.of[n_levels] = room
        return room


def load() -> Kernel | None:
    """The kernel with all this processor's features; None where there is none to load."""
    spec = find_spec(_NAME)
    if spec is None or spec.origin is None or not spec.origin.endswith(tuple(EXTENSION_SUFFIXES)):
        return None
    try:
        library = ctypes.CDLL(spec.origin)
        if library.veilrun_abi() != _ABI:  # an older build, left beside newer sources
            return None
        for name, signature in _SIGNATURES.items():
            function = getattr(library, name)
            function.argtypes, function.restype = signature, None
        library.veilrun_features.restype = _U32
        library.veilrun_run.restype = _I32
        library.veilrun_dpf_lines.restype = ctypes.c_uint64
        library.veilrun_dpf_scratch_bytes.argtypes = (_I32,)
        library.veilrun_dpf_scratch_bytes.restype = _I64
    except (OSError, AttributeError):  # built for another machine, or not this library at all
        return None
    return Kernel(library, Feature(library.veilrun_features()))


def aligned(n_bytes: int) -> Array:
    """Uninitialised uint8 [n_bytes] that starts on a cache line; large ones in large pages."""
    if n_bytes >= _LARGE_BYTES and hasattr(mmap, "MADV_HUGEPAGE"):
        pages = mmap.mmap(-1, n_bytes + _LARGE_PAGE_BYTES, flags=mmap.MAP_PRIVATE)
        with contextlib.suppress(OSError):  # a kernel without them
            pages.madvise(mmap.MADV_HUGEPAGE)
        return np.frombuffer(pages, np.uint8, n_bytes)
    return passing(n_bytes)


def passing(n_bytes: int) -> Array:
    """The same for what soon goes: the next one gets its memory, where that is kept."""
    memory = np.empty(n_bytes + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + n_bytes]


def address(array: Array) -> int:
    """Where a C-contiguous array begins."""
    buffer: Any = array
    try:
        return ctypes.addressof(ctypes.c_char.from_buffer(buffer))  # a quarter of the time
    except (TypeError, ValueError):  # read-only, or empty
        return int(array.ctypes.data)


def contiguous(array: Array) -> Array:
    """The array as the kernel reads it: aligned, in C order; a copy only where it must be."""
    return array if array.flags.c_contiguous and array.flags.aligned else array.copy()


def spread(run: Callable[[int, int], None], n_items: int, n_threads: int, unit: int = 1) -> None:
    """`run(first, end)` over parts of range(n_items), one per thread; parts start at `unit`s."""
    n_units = -(-n_items // unit)
    n_parts = max(1, min(n_threads, n_units))
    bounds = [min(n_items, n_units * part // n_parts * unit) for part in range(n_parts + 1)]
    if n_parts == 1:
        run(0, n_items)
        return
    pool = _pool(os.getpid(), n_parts - 1)
    others = [pool.submit(run, bounds[i], bounds[i + 1]) for i in range(1, n_parts)]
    try:
        run(bounds[0], bounds[1])
    finally:  # the parts write into arrays of the caller's: none may outlive this call
        for other in others:
            other.exception()
    for other in others:
        other.result()


@lru_cache(maxsize=8)
def _pool(_process: int, n_threads: int) -> ThreadPoolExecutor:
    """Threads of this process; those of a parent are not there after a fork."""
    return ThreadPoolExecutor(n_threads, thread_name_prefix="veilrun-kernel")


KERNEL: Kernel | None = load()
