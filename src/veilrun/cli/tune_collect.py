"""`veilrun tune collect`: measure ways of running models, for the tuner to learn from."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import shutil
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from veilrun.cli.options import JsonOption, stderr, stdout
from veilrun.errors import UsageError

if TYPE_CHECKING:
    from veilrun.tune.specimens import Specimen


def collect(
    out: Annotated[Path, typer.Argument(help="Folder of the data set; an unfinished one goes on.")],
    model: Annotated[
        list[str] | None,
        typer.Option(help="One of the shapes to measure; repeatable. Default: all of them."),
    ] = None,
    tasks: Annotated[int, typer.Option(min=1, help="Workloads for each shape.")] = 10,
    requests: Annotated[
        tuple[int, int], typer.Option(help="Fewest and most requests of a workload.")
    ] = (1, 5),
    machine: Annotated[
        str, typer.Option(help="What the records call this machine.")
    ] = platform.machine(),
    core: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Measure on this core alone, in CPU seconds: what a clock would show if the core "
            "were ours. Default: all cores, by the clock on the wall, which wants a machine that "
            "nobody else uses.",
        ),
    ] = None,
    compiled: Annotated[
        bool, typer.Option("--compiled", help="Measure torch.compile too: a minute a task.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Which workloads; another seed, other ones.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Measure every arm on made-up models and traffic. Leave the machine alone meanwhile."""
    if core is not None:
        _stay_on(core)  # before torch counts the cores
    from veilrun.node.clocks import CpuClock, WallClock
    from veilrun.node.collecting import Collection, collect
    from veilrun.node.collecting import tasks as tasks_of
    from veilrun.tune import dataset
    from veilrun.tune.machine import probe
    from veilrun.tune.records import Journal

    chosen = _specimens(model)
    if requests[0] < 1 or requests[1] < requests[0]:
        raise UsageError(f"--requests {requests[0]} {requests[1]}: fewest first, and at least 1")
    wanted = list(tasks_of(chosen, tasks, seed, requests))
    out.mkdir(parents=True, exist_ok=True)
    journal = Journal(out / dataset.JOURNAL)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=stderr(), transient=True) as progress:
        bar = progress.add_task("probing the machine", total=len(wanted))
        clock = WallClock() if core is None else CpuClock()
        how = Collection(probe(), machine, shutil.which("g++") is not None, compiled, clock)
        tell = partial(progress.update, bar, advance=1)
        asyncio.run(collect(wanted, journal, how, lambda task, _: tell(description=task.name)))
    report = dataset.write(out)
    if as_json:
        stdout().print_json(json.dumps(report.to_json()))
        return
    stdout().print(report.describe(), soft_wrap=True)


def _stay_on(core: int) -> None:
    if not hasattr(os, "sched_setaffinity"):
        raise UsageError("--core is for systems that can bind a process to a core: leave it out")
    try:
        os.sched_setaffinity(0, {core})
    except OSError as error:
        raise UsageError(f"there is no core {core} for this process") from error


def _specimens(names: list[str] | None) -> list[Specimen]:
    """The shapes of these names; all without any."""
    from veilrun.tune.specimens import SPECIMENS

    known = {one.name: one for one in SPECIMENS}
    unknown = [name for name in names or () if name not in known]
    if unknown:
        raise UsageError(f"no shape is called {unknown[0]!r}; there are {', '.join(known)}")
    return [known[name] for name in names or known]
