"""`veilrun tune evaluate`: how good selectors are on what they have not seen."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import Progress
from rich.table import Table

from veilrun.cli.options import JsonOption, stderr, stdout

if TYPE_CHECKING:
    from veilrun.tune.evaluation import Evaluation, Score
    from veilrun.tune.scenario import Scenario


def evaluate(
    data: Annotated[
        Path, typer.Argument(help="A data set of `veilrun tune collect`, or an ASlib scenario.")
    ],
    hold_out: Annotated[
        list[str] | None,
        typer.Option(
            help="tasks, model, workload, machine, or folds (the scenario's own); repeatable."
        ),
    ] = None,
    embedder: Annotated[
        Path | None,
        typer.Option(help="Folder of a BERT-like encoder for the selector that reads sentences."),
    ] = None,
    exact: Annotated[
        bool, typer.Option(help="Leave out arms whose answers differ from the stored weights'.")
    ] = False,
    only: Annotated[
        list[str] | None, typer.Option(help="A selector; repeatable. Default: all of them.")
    ] = None,
    plots: Annotated[
        Path | None, typer.Option(help="Folder for the pictures: regret curves and a heat map.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Fit every selector without some tasks, models or workloads, and ask it about just those."""
    from veilrun.tune import dataset, pictures
    from veilrun.tune.arms import by_name
    from veilrun.tune.evaluation import evaluate
    from veilrun.tune.portfolio import selectors

    scenario = dataset.read(data)
    if exact:
        scenario = scenario.columns([arm for arm in scenario.arms if by_name(arm).is_exact])
    chosen = selectors(scenario, embedder, only)
    held_out = hold_out or _default(scenario)
    results = []
    with Progress(console=stderr(), transient=True) as progress:
        for what in held_out:
            bar = progress.add_task(f"holding out {what}", total=None)
            results.append(evaluate(scenario, chosen, what, _to(progress, bar)))
    if plots is not None:
        pictures.draw(scenario, results, plots)
    if as_json:
        stdout().print_json(json.dumps([one.to_json() for one in results]))
        return
    for one in results:
        stdout().print(_table(one))


def _default(scenario: Scenario) -> list[str]:
    if scenario.folds is not None:
        return ["folds"]
    several = [name for name, words in scenario.groups.items() if len(set(words)) > 1]
    return ["tasks", *several]


def _to(progress: Progress, bar: object) -> Callable[[int, int], None]:
    return lambda done, total: progress.update(bar, completed=done, total=total)  # type: ignore[arg-type]


def _table(one: Evaluation) -> Table:
    """What fits into 80 columns; `--json` has all of it."""
    table = Table(title=f"{one.scenario}: {one.hold_out} held out", title_justify="left", box=None)
    table.add_column("selector", no_wrap=True)
    for column in ("gap", "95 %", "regret", "worst", "speed", "worse"):
        table.add_column(column, justify="right", no_wrap=True)
    for score in one.scores:
        table.add_row(score.name, *_cells(score, relative=one.scale == "latency"))
    table.caption = (
        "gap: closed between single best (0) and oracle (1); speed: over the default arm; worse: "
        "held-out folds on which it is worse than the single best by more than the noise"
    )
    return table


def _cells(score: Score, *, relative: bool) -> tuple[str, ...]:
    """Regrets are shares of the oracle's time on our own scale, seconds or quality on others."""

    def regret(value: float) -> str:
        return f"{value:.1%}" if relative else f"{value:.4g}"

    low, high = score.closed_gap_interval
    return (
        f"{score.closed_gap:.2f}",
        f"{low:.2f}..{high:.2f}",
        regret(score.mean_regret),
        regret(score.max_regret),
        f"{score.speed_up:.2f}",
        str(sum(fold.is_worse for fold in score.folds)),
    )
