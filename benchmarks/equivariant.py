"""Equivariant encryption: what it costs to encrypt, to serve, and to go through the proxy.

    python benchmarks/equivariant.py [--only encrypt|serve] [--quick] > results.jsonl

One JSON line per result on standard output; the table goes to standard error.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import encryption
import serving
from report import Report


def main() -> None:
    """Run the benchmarks that were asked for, in a temporary folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=["encrypt", "serve"], help="one half of it")
    parser.add_argument("--quick", action="store_true", help="fewer runs, small checkpoints only")
    parser.add_argument("--folder", type=Path, help="where to work; needs 7 GB without --quick")
    options = parser.parse_args()
    report = Report("equivariant encryption")
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="veilrun-bench-") as folder:
        work = Path(folder)
        if options.only != "serve":
            encryption.run(report, work, 1 if options.quick else 3, big=not options.quick)
        if options.only != "encrypt":
            serving.run(report, work, 3 if options.quick else 13)
    report.show()


if __name__ == "__main__":
    main()
