"""What the commands of the three parties share: options, and how a server ends."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer

from veilrun.cli.options import stdout
from veilrun.errors import UsageError

NetworkOption = Annotated[
    Path, typer.Option("--network", help="The network file, mpc.toml: who the parties are.")
]
StateOption = Annotated[
    Path,
    typer.Option(
        "--state", help="This party's folder: its certificate, keys and material; made if missing."
    ),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(
        "--threads", min=1, help="Threads of look-ups and products; default: one per core."
    ),
]
PatienceOption = Annotated[
    float,
    typer.Option("--patience", min=0, help="Seconds to wait for parties that start later."),
]
LifelineOption = Annotated[
    bool,
    typer.Option("--lifeline", hidden=True, help="End when standard input ends."),
]


def threads_or_cores(n_threads: int | None) -> int:
    """The option's value, or one per core."""
    return n_threads or os.cpu_count() or 1


def end_on_signals(*, lifeline: bool) -> None:
    """SIGTERM and SIGINT end a server quietly; `lifeline`: so does the end of standard input."""

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(0)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    if lifeline:
        threading.Thread(target=_watch_lifeline, daemon=True).start()


def _watch_lifeline() -> None:
    while os.read(sys.stdin.fileno(), 4096):  # a buffer's lock would be in the way at the end
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def announce(facts: dict[str, Any], text: str, *, as_json: bool) -> None:
    """Say that a server is ready: one line of JSON, or a sentence."""
    if as_json:
        typer.echo(json.dumps(facts))
    else:
        stdout().print(text, soft_wrap=True, markup=False)


def parse_stock(text: str | None) -> list[tuple[int, int]]:
    """`16x4,32x2`: four inferences of 16 tokens and two of 32.

    Raises:
        UsageError: it is something else.
    """
    result = []
    for part in (text or "").split(",") if text else []:
        length, cross, count = part.strip().partition("x")
        if not (cross and length.isdecimal() and count.isdecimal() and int(length) > 0):
            raise UsageError(f"--stock is TOKENSxCOUNT,... like 16x4,32x2; {part!r} is not")
        result.append((int(length), int(count)))
    return result
