"""How long evidence takes to verify: CPU, GPU and TPM of one machine, after import.

    python benchmarks/attest.py ../shared/attestation

Recorded evidence: an Azure machine's TPM quote with the SNP report under it, a TDX quote with
collateral, an H100 with its chain. Parsed and authenticated as `veilrun attest` does; times are
medians over runs, one thread. Prints one JSON line per kind and one for all together.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

from veilrun.attest import files
from veilrun.attest.policy import AllOf, Demands
from veilrun.attest.policy_file import parse_policy
from veilrun.attest.verdict import appraise, require

RUNS: Final = 30
PROMISED_MS: Final = 100.0


@dataclass(frozen=True, slots=True)
class Piece:
    """One kind of evidence: files, what belongs to them too, and a time at which all is valid."""

    name: str
    files: tuple[str, ...]
    at: datetime


PIECES: Final = (
    Piece(
        "TPM quote over an SNP report",
        (
            "tpm/azure-snp-evidence-v1.json",
            "sev-snp/amd-milan-ask.der",
            "sev-snp/amd-milan-ark.der",
        ),
        datetime(2025, 1, 1, tzinfo=UTC),
    ),
    Piece(
        "TDX quote with collateral",
        (
            "sgx-tdx/tdx-v4-quote-b0c06f-uptodate.bin",
            "sgx-tdx/collateral-tdx-b0c06f000000-2025-06.json",
            "sgx-tdx/intel-sgx-root-ca.der",
        ),
        datetime(2025, 6, 20, 12, tzinfo=UTC),
    ),
    Piece(
        "H100 report",
        (
            "nvidia/hopper-580-159-03-report.txt",
            "nvidia/hopper-580-159-03-chain.pem",
            "nvidia/nvidia-device-identity-root.pem",
        ),
        datetime(2025, 6, 1, tzinfo=UTC),
    ),
)

POLICY: Final = """
[tcb]
nvidia-gpu = ["not-run"]
[freshness]
nonce = false
[bindings]
gpu = false
"""
"""Only what differs between one machine's evidence and three machines' recordings is left out."""


def verify(contents: list[bytes], policy: AllOf, at: datetime) -> None:
    """Read, authenticate and appraise; raises where it is refused."""
    bundle = sum((files.read(one) for one in contents[1:]), start=files.read(contents[0]))
    require(appraise(bundle, policy, Demands(), at))


def measure(piece: Piece, folder: Path, policy: AllOf) -> float:
    """Median milliseconds."""
    contents = [(folder / name).read_bytes() for name in piece.files]
    times = []
    for _ in range(RUNS):
        began = time.perf_counter()
        verify(contents, policy, piece.at)
        times.append(1000 * (time.perf_counter() - began))
    return statistics.median(times)


def main() -> None:
    """Read the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("folder", type=Path, help="recorded evidence")
    folder = parser.parse_args().folder
    policy = parse_policy(POLICY)
    table = Table(title="verifying evidence, median")
    table.add_column("evidence")
    table.add_column("ms", justify="right")
    total = 0.0
    for piece in PIECES:
        median = measure(piece, folder, policy)
        total += median
        sys.stdout.write(json.dumps({"benchmark": "attest", "of": piece.name, "ms": median}) + "\n")
        table.add_row(piece.name, f"{median:.1f}")
    sys.stdout.write(json.dumps({"benchmark": "attest", "of": "all", "ms": total}) + "\n")
    table.add_row(f"all (promised: {PROMISED_MS:.0f})", f"{total:.1f}")
    Console(stderr=True).print(table)


if __name__ == "__main__":
    main()
