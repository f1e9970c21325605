"""What a machine can do, measured in about two seconds: numbers, not names of processors.

Torch runs the models, so torch is what is measured: matrix products on one thread and on all,
copying, 8-bit layers beside float ones, and how long the smallest step takes, which is what small
models spend their time on.

Every number is the best of several tries: other work on the machine only ever makes one slower.
"""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

_SIZE: Final = 768
_COPY_BYTES: Final = 64 * 2**20
_TRIES: Final = 12
_SMALL_STEPS: Final = 200


@dataclass(frozen=True, slots=True)
class Machine:
    """n_cores: that this process may run on. Rates are of float32 unless named otherwise.

    gflops, gflops_all: 10^9 multiplications and additions a second, on one thread and on all.
    copy_gbps: 10^9 bytes a second that one thread reads and writes again.
    int8_gain: time of a float layer over that of the same layer with 8-bit weights, one row.
    step_us: microseconds of one small torch operation.
    """

    n_cores: int
    gflops: float
    gflops_all: float
    copy_gbps: float
    int8_gain: float
    step_us: float

    def features(self) -> dict[str, float]:
        """What a selector sees: logarithms, so that ratios between machines are steps."""
        return {
            "log_n_cores": math.log2(self.n_cores),
            "log_gflops": math.log2(self.gflops),
            "log_gflops_all": math.log2(self.gflops_all),
            "log_copy_gbps": math.log2(self.copy_gbps),
            "log_int8_gain": math.log2(self.int8_gain),
            "log_step_us": math.log2(self.step_us),
        }

    def describe(self) -> str:
        """The machine in a sentence."""
        return (
            f"{self.n_cores} cores, {self.gflops:.0f} GFLOP/s on one and {self.gflops_all:.0f} on "
            f"all, copies {self.copy_gbps:.1f} GB/s, 8-bit layers {self.int8_gain:.1f} times as "
            f"fast, {self.step_us:.1f} us a step"
        )


def probe() -> Machine:
    """Measure this machine; torch's number of threads is put back afterwards."""
    import torch

    n_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    n_cores = n_cores or os.cpu_count() or 1
    n_before = torch.get_num_threads()
    left, right = torch.rand(_SIZE, _SIZE), torch.rand(_SIZE, _SIZE)
    source = torch.empty(_COPY_BYTES // 4)
    target = torch.empty_like(source)
    small = torch.rand(16)
    try:
        with torch.inference_mode():
            torch.set_num_threads(1)
            product_s = _best(lambda: torch.mm(left, right))
            copy_s = _best(lambda: target.copy_(source))
            step_s = _best(lambda: [small.add(small) for _ in range(_SMALL_STEPS)]) / _SMALL_STEPS
            int8_gain = _int8_gain()
            torch.set_num_threads(n_cores)
            product_all_s = _best(lambda: torch.mm(left, right))
    finally:
        torch.set_num_threads(n_before)
    work = 2 * _SIZE**3 / 1e9
    return Machine(
        n_cores=n_cores,
        gflops=work / product_s,
        gflops_all=work / product_all_s,
        copy_gbps=2 * _COPY_BYTES / copy_s / 1e9,
        int8_gain=int8_gain,
        step_us=step_s * 1e6,
    )


def _int8_gain() -> float:
    """One row through a layer that no cache holds, float over 8-bit; 1 where there is no kernel."""
    import torch

    layer = torch.nn.Sequential(torch.nn.Linear(2048, 2048)).eval()
    row = torch.rand(1, 2048)
    try:
        with warnings.catch_warnings():
            # Announced as moving to a package whose kernels do not load on every CPU.
            warnings.simplefilter("ignore")
            small = torch.ao.quantization.quantize_dynamic(  # type: ignore[no-untyped-call]
                layer, {torch.nn.Linear}, torch.qint8
            )
        small(row)
    except RuntimeError:  # this build or processor has no such kernel
        return 1.0
    return _best(lambda: layer(row)) / _best(lambda: small(row))


def _best(work: Callable[[], object]) -> float:
    """The shortest of several tries, in seconds."""
    work()
    best = math.inf
    for _ in range(_TRIES):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best
