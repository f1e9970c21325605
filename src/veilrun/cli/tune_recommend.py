"""`veilrun tune recommend`: which arm for this model, this machine and this workload."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from veilrun.cli.options import JsonOption, stderr, stdout
from veilrun.errors import UsageError

if TYPE_CHECKING:
    from veilrun.tune.advice import Advice
    from veilrun.tune.tuner import Tuner
    from veilrun.tune.workload import Workload

_WORKLOAD = typer.Option(
    help="A kind (chat, edit, summary, retrieval, label, bulk, trickle) or a JSON file that "
    "describes one."
)
WorkloadOption = Annotated[str, _WORKLOAD]
NodeWorkloadOption = Annotated[str | None, _WORKLOAD]
TunerOption = Annotated[
    Path | None,
    typer.Option(help="A folder of `veilrun tune train`. Default: the tuner that comes along."),
]
ApproximateOption = Annotated[
    bool,
    typer.Option(
        "--allow-approximate-weights",
        help="Arms that round weights to 8 bits may be taken: answers then differ a little.",
    ),
]
DraftOption = Annotated[
    Path | None,
    typer.Option(help="A smaller model under the same key, for arms that guess ahead with one."),
]


def recommend(
    model: Annotated[Path, typer.Argument(help="A model's folder, encrypted or not.")],
    workload: WorkloadOption = "chat",
    tuner: TunerOption = None,
    allow_approximate_weights: ApproximateOption = False,
    draft: DraftOption = None,
    price_per_hour: Annotated[
        float | None, typer.Option(min=0.0, help="What the machine costs.")
    ] = None,
    budget: Annotated[
        float | None, typer.Option(min=0.0, help="The most that a thousand requests may cost.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Advise without running the model: from its shape, a probe of the machine, and past runs."""
    from veilrun.node import loading
    from veilrun.tune import shape
    from veilrun.tune.arms import Situation
    from veilrun.tune.machine import probe
    from veilrun.tune.task import Task
    from veilrun.tune.workload import USUAL_AGREEMENT

    if budget is not None and price_per_hour is None:
        raise UsageError("a budget needs a price: add --price-per-hour")
    wanted = read_workload(workload)
    if draft is not None and not wanted.agreement:
        wanted = replace(wanted, agreement=USUAL_AGREEMENT)
    with stderr().status("probing the machine"):
        here = probe()
        known = load_tuner(tuner)
    task = Task(shape.read(loading.load_config(model).get_text_config()), here, wanted)
    situation = Situation(
        n_cores=here.n_cores,
        has_draft=draft is not None,
        can_compile=False,  # as `veilrun node --tune auto` decides
        exact=not allow_approximate_weights,
    )
    advice = known.advise(task.features(), task.describe(), situation)
    if budget is not None and price_per_hour is not None:
        advice = advice.within(budget, wanted, price_per_hour)
    if as_json:
        content = advice.to_json() | {"workload": wanted.to_json()}
        stdout().print_json(json.dumps(content))
        return
    show(advice, wanted, price_per_hour)


def read_workload(text: str) -> Workload:
    """A kind's name, or a file."""
    from veilrun.tune import workload

    if text in workload.KINDS:
        return workload.typical(text)
    if not Path(text).exists():
        raise UsageError(
            f"{text!r} is neither a kind of workload ({', '.join(workload.KINDS)}) nor a file"
        )
    return workload.read(Path(text))


def load_tuner(folder: Path | None) -> Tuner:
    """The tuner in a folder, or the one that comes along."""
    from veilrun.bundled import runs
    from veilrun.tune.tuner import Tuner

    return Tuner.load(folder or runs())


def show(advice: Advice, workload: Workload, price_per_hour: float | None) -> None:
    """The advice, for people."""
    console = stdout()
    console.print(f"for {escape(workload.describe())}", soft_wrap=True)
    table = Table(title="expected, not measured", title_justify="left", box=None)
    table.add_column("arm", no_wrap=True)
    for column in ("speed-up", "likely", "s a request"):
        table.add_column(column, justify="right", no_wrap=True)
    if price_per_hour is not None:
        table.add_column("cost of 1,000", justify="right", no_wrap=True)
    for option in advice.options[:_N_SHOWN]:
        likely = f"{option.speed_up / option.factor:.2f} to {option.speed_up * option.factor:.2f}"
        cells = [option.arm.name, f"{option.speed_up:.2f}", likely, f"{option.latency_s:.3f}"]
        if price_per_hour is not None:
            cells.append(f"{option.cost(workload, price_per_hour):.3g}")
        table.add_row(*cells)
    console.print(table)
    if advice.is_guarded:
        console.print("no arm is surely better here, so the one that is best on average is taken")
    for remark in advice.remarks:
        console.print(f"[yellow]unlike the machines measured:[/] {escape(remark)}", soft_wrap=True)
    arm = advice.chosen.arm
    console.print(f"run [bold]{arm.name}[/]: {arm.describe()}", soft_wrap=True)
    for leak in arm.leaks():
        console.print(f"[yellow]it leaks:[/] {escape(leak)}", soft_wrap=True)


_N_SHOWN = 6
