"""`veilrun tune train`: a tuner from a data set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from veilrun.cli.options import JsonOption, stderr, stdout


def train(
    data: Annotated[Path, typer.Argument(help="A folder that `veilrun tune collect` made.")],
    out: Annotated[Path, typer.Argument(help="The tuner's folder; it must not exist yet.")],
    more: Annotated[
        list[Path] | None,
        typer.Option(help="Another data set to learn from, like a node's own; repeatable."),
    ] = None,
    hold_out: Annotated[
        str, typer.Option(help="What its own validation holds out: model, workload or machine.")
    ] = "model",
    as_json: JsonOption = False,
) -> None:
    """Learn which arm suits which model, machine and workload."""
    from veilrun.tune import dataset
    from veilrun.tune.selector import MetaSelector
    from veilrun.tune.tuner import Tuner

    scenario = dataset.read(data, *(more or ()))
    with stderr().status("learning"):
        tuner = Tuner.train(scenario, MetaSelector(), hold_out)
    tuner.save(out)
    if as_json:
        content = {"tasks": len(scenario.tasks), "verdict": tuner.fitted.describe()}
        stdout().print_json(json.dumps(content))
        return
    stdout().print(f"{len(scenario.tasks)} tasks: {tuner.fitted.describe()}", soft_wrap=True)
