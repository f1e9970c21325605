"""How fast `encrypt` is, beside `cp` of the same bytes, and how much memory it takes.

Each run is a process of its own, so that its peak memory is its own. Time is that of `encrypt`
without imports; CPU seconds are those of the whole process less the imports.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from checkpoints import quarter_llama, tiny_llama
from report import Report, spread

_CHILD = """
import json, re, resource, sys, time
from pathlib import Path
import torch, transformers
from veilrun.equivariant.compile import encrypt
from veilrun.keys import MasterKey
from transformers import AutoConfig
AutoConfig.from_pretrained(sys.argv[1])  # loads the lazy parts, as an import would
def cpu():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
start, used = time.monotonic(), cpu()
out = Path(sys.argv[2])
made = encrypt(sys.argv[1], out / "out", MasterKey(bytes(32)), kits=out / "kits")
# Not ru_maxrss: that one remembers the parent's peak from before exec.
peak = re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())
print(json.dumps({
    "wall_s": time.monotonic() - start,
    "cpu_s": cpu() - used,
    "peak_bytes": 1024 * int(peak[1]),
    "n_bytes": made.n_bytes,
}))
"""


def run(report: Report, work: Path, n_runs: int, *, big: bool) -> None:
    """Measure both shapes (`big`) or only the small one, copies interleaved."""
    costs = {}
    subjects = {"quarter": quarter_llama(work / "quarter")}
    if big:
        subjects["tinyllama-1.1b"] = tiny_llama(work / "tinyllama-1.1b")
    for name, folder in subjects.items():
        runs, copies = [], []
        for _ in range(n_runs):
            runs.append(_encrypt(folder, work / "made"))
            copies.append(_copy_s(folder / "model.safetensors", work / "copy"))
        costs[name] = _add(report, name, runs, copies)
    if big:
        ratio = costs["tinyllama-1.1b"] / costs["quarter"]
        report.add(
            "encrypt-cost-per-weight-ratio",
            {"ratio": round(ratio, 3), "hidden": [2048, 512]},
            f"{ratio:.2f}x the CPU per weight at 4x the hidden size",
            "flat",
        )


def _add(report: Report, name: str, runs: list[dict[str, Any]], copies: list[float]) -> float:
    n_bytes = runs[0]["n_bytes"]
    speed = [n_bytes / 1e6 / one["wall_s"] for one in runs]
    cpu_ns = [one["cpu_s"] / (n_bytes / 2) * 1e9 for one in runs]
    peak = max(one["peak_bytes"] for one in runs)
    facts = {
        "shape": name,
        "n_bytes": n_bytes,
        "mb_per_s": spread(speed),
        "cpu_ns_per_weight": spread(cpu_ns),
        "cp_mb_per_s": spread([n_bytes / 1e6 / one for one in copies]),
        "peak_bytes": peak,
    }
    summary = (
        f"{statistics.median(speed):.0f} MB/s ({statistics.median(cpu_ns):.1f} CPU ns/weight, "
        f"cp {facts['cp_mb_per_s']['median']:.0f} MB/s), peak {peak / 1e9:.2f} GB"
    )
    promise = ">= 100 MB/s, <= 1.5 GB" if name.startswith("tiny") else ""
    report.add("encrypt", facts, summary, promise)
    return statistics.median(cpu_ns)


def _encrypt(folder: Path, out: Path) -> dict[str, Any]:
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-c", _CHILD, str(folder), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def _copy_s(source: Path, target: Path) -> float:
    start = time.monotonic()
    subprocess.run(["cp", str(source), str(target)], check=True)  # noqa: S607
    return time.monotonic() - start
