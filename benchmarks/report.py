"""One JSON line per result on standard output, one table for people at the end."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table


class Report:
    """Collects results; `add` prints each as a JSON line at once."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._rows: list[tuple[str, str, str]] = []

    def add(self, name: str, facts: dict[str, Any], summary: str, want: str = "") -> None:
        """One result. summary: for people. want: what the project promises, if it does."""
        print(json.dumps({"benchmark": name, **facts}), flush=True)
        self._rows.append((name, summary, want))

    def show(self) -> None:
        """The table, on standard error so that standard output stays JSON lines."""
        table = Table("benchmark", "measured", "promised", title=self._title)
        for row in self._rows:
            table.add_row(*row)
        Console(stderr=True, width=120).print(table)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Minimum, median and maximum, rounded for reading."""
    return {
        "min": round(min(values), 4),
        "median": round(statistics.median(values), 4),
        "max": round(max(values), 4),
    }
