"""`veilrun mpc quantise`: a checkpoint becomes integers that can be run on secret shares."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from veilrun.cli.options import JsonOption, stderr, stdout
from veilrun.errors import UsageError

if TYPE_CHECKING:
    from veilrun.mpc.cost import Prediction
    from veilrun.mpc.model.convert import Agreement, Report

_SHOWN_PLACES = 6


def quantise(
    model: Annotated[str, typer.Argument(help="A folder, or a model id on the hub.")],
    out: Annotated[Path, typer.Argument(help="The folder to make; it stays with the owner.")],
    calibrate: Annotated[
        Path, typer.Option(help="Texts like those that will come, and as long; one per line.")
    ],
    profile: Annotated[
        str, typer.Option(help="Widths of the fixed point; w1a4 needs a model trained for it.")
    ] = "w16a8",
    public_embedding: Annotated[
        bool,
        typer.Option(
            "--public-embedding",
            help="Give the client the embedding table, instead of looking it up privately.",
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Quantise a model, and say how far its answers move. OUT holds secrets of the model."""
    from veilrun.checkpoint.source import resolve
    from veilrun.mpc.model.convert import convert
    from veilrun.mpc.model.quantised import CLIENT_EMBEDDING, SECRET_EMBEDDING
    from veilrun.mpc.profile import profile_of

    widths = profile_of(profile)
    texts = _lines(calibrate)
    with Progress(console=stderr(), transient=True) as progress:
        bars = {
            phase: progress.add_task(phase, total=None) for phase in ("calibrating", "checking")
        }
        report = convert(
            resolve(model),
            out,
            texts=texts,
            profile=widths,
            embedding=CLIENT_EMBEDDING if public_embedding else SECRET_EMBEDDING,
            progress=lambda phase, done, total: progress.update(
                bars[phase], completed=done, total=total
            ),
        )
    if as_json:
        stdout().print_json(json.dumps(_facts(report)))
        return
    _show(report)


def costs_table(costs: tuple[Prediction, ...]) -> Table:
    """Bytes and rounds by length, for people."""
    table = Table(title="one inference, up to the longest text", title_justify="left")
    table.add_column("tokens", justify="right")
    for column in ("rounds", "offline MB", "embedding MB", "online MB", "MB per token"):
        table.add_column(column, justify="right")
    for one in costs:
        table.add_row(
            str(one.n_tokens),
            str(one.n_embedding_rounds + one.n_online_rounds),
            f"{one.offline_bytes / 1e6:,.2f}",
            f"{one.embedding_bytes / 1e6:,.2f}",
            f"{one.online_bytes / 1e6:,.2f}",
            f"{one.total_bytes / one.n_tokens / 1e6:,.2f}",
        )
    return table


def _lines(path: Path) -> list[str]:
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {path} as text") from error
    texts = [line.strip() for line in lines if line.strip()]
    if not texts:
        raise UsageError(f"{path} holds no text; give one per line, the more the better")
    return texts


def _facts(report: Report) -> dict[str, Any]:
    facts = asdict(report)
    facts["folder"] = str(report.folder)
    facts["architecture"] = report.architecture.to_json()
    facts["costs"] = [one.to_json() for one in report.costs]
    return facts


def _show(report: Report) -> None:
    console = stdout()
    a = report.architecture
    console.print(
        f"[green]quantised[/] {a.family}, {a.n_layers} layers of {a.hidden}, profile "
        f"{escape(report.profile)}, embedding {report.embedding}, into "
        f"[bold]{escape(str(report.folder))}[/]\n"
        f"calibrated on {report.n_texts:,} texts, {report.n_tokens:,} tokens; no text may be "
        f"longer than {report.max_tokens} tokens",
        soft_wrap=True,
    )
    console.print(_agreement_table(report.agreement))
    for verdict in _verdicts(report.agreement):
        console.print(verdict, soft_wrap=True)
    console.print(costs_table(report.costs))


def _agreement_table(found: Agreement) -> Table:
    table = Table(
        title=f"integers beside floats, {found.n_texts} texts", title_justify="left", box=None,
        show_header=False,
    )  # fmt: skip
    table.add_column(style="bold", no_wrap=True)
    table.add_column(justify="right")
    if found.same_label is not None:
        table.add_row("same label", f"{found.same_label:.1%}")
    table.add_row("cosine, median", f"{found.cosine_median:.5f}")
    table.add_row("cosine, worst", f"{found.cosine_worst:.5f}")
    table.add_row("largest difference", f"{found.largest_difference:.4f}")
    table.add_row("overflows", f"{sum(found.overflows.values()):,}")
    table.add_row("near the end of a window", f"{sum(found.flagged.values()):,}")
    return table


def _verdicts(found: Agreement) -> list[str]:
    verdicts = []
    if found.overflows:
        verdicts.append(
            f"[red]values left their range[/], so some answers are wrong: "
            f"{_places(found.overflows)}. Calibrate with more texts"
        )
    if found.flagged:
        verdicts.append(
            f"[yellow]values came near the end of their window[/]: {_places(found.flagged)}"
        )
    return verdicts


def _places(counts: dict[str, int]) -> str:
    worst = sorted(counts, key=lambda place: -counts[place])
    named = ", ".join(f"{escape(place)} ({counts[place]:,})" for place in worst[:_SHOWN_PLACES])
    rest = len(worst) - _SHOWN_PLACES
    return named if rest <= 0 else f"{named} and {rest} places more"
