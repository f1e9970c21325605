"""`veilrun tune arms`: what a tuner chooses from, and what each choice gives away."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from typing import Annotated

import typer
from rich.table import Table

from veilrun.cli.options import JsonOption, stdout


def arms(
    exact: Annotated[
        bool, typer.Option(help="Object to arms whose answers differ from the stored weights'.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """List the ways of running a model, what stands against them here, and what they leak."""
    from veilrun.tune.arms import ARMS, VLLM_ARMS, Situation

    built_in = Situation(
        os.cpu_count() or 1, can_compile=shutil.which("g++") is not None, exact=exact
    )
    vllm = replace(built_in, engine="vllm")
    listed = [(arm, built_in.objections(arm)) for arm in ARMS]
    listed += [(arm, vllm.objections(arm)) for arm in VLLM_ARMS]
    if as_json:
        content = [
            {
                "arm": arm.name,
                "what": arm.describe(),
                "objections": list(objections),
                "leaks": list(arm.leaks()),
                "exact": arm.is_exact,
            }
            for arm, objections in listed
        ]
        stdout().print_json(json.dumps(content))
        return
    table = Table(title="arms", title_justify="left")
    for column in ("arm", "what it is", "against it, here", "what it leaks"):
        table.add_column(column, overflow="fold")
    for arm, objections in listed:
        table.add_row(arm.name, arm.describe(), "; ".join(objections), "; ".join(arm.leaks()))
    stdout().print(table)
