"""`veilrun mpc classify`: P1, the client; or all three parties on this machine, to try it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from veilrun.cli.mpc_roles import PatienceOption
from veilrun.cli.options import JsonOption, guarantee, stderr, stdout
from veilrun.errors import UsageError
from veilrun.types import MPC

if TYPE_CHECKING:  # numpy and the kernels; --help needs none of them
    from veilrun.mpc import Classification, Client, Cost, Embedding

Arguments = Annotated[
    list[str] | None,
    typer.Argument(
        help="Texts. Without --network, the first is MODEL, a folder that `veilrun mpc quantise` "
        "wrote.",
        metavar="[MODEL] [TEXT]...",
    ),
]
FileOption = Annotated[
    Path | None, typer.Option("--file", help="Read texts from this file, one per line.")
]
Network = Annotated[
    Path | None,
    typer.Option("--network", help="The network file; without it, all run on this machine."),
]
State = Annotated[Path | None, typer.Option("--state", help="This party's folder, with --network.")]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads",
        min=1,
        help="Threads of look-ups and products; default: one per core, and one for each party "
        "where all run on this machine.",
    ),
]
AllowLonger = Annotated[
    bool,
    typer.Option("--allow-longer", help="Texts longer than those the model was calibrated with."),
]


def classify(
    arguments: Arguments = None,
    file: FileOption = None,
    network: Network = None,
    state: State = None,
    allow_longer: AllowLonger = False,
    threads: Threads = None,
    patience: PatienceOption = 60.0,
    as_json: JsonOption = False,
) -> None:
    """Classify texts that nobody else sees, with weights that you do not see.

    A model without labels gives the mean of its last hidden states instead.
    """
    model, texts = _read(arguments or [], file, network, state)
    console = stderr() if as_json else stdout()
    is_flagged = False
    with _client(model, network, state, threads, patience) as client:
        if not as_json:
            console.print(guarantee(MPC))
        ask = client.classify if client.public.architecture.labels else client.embed
        for text in texts:
            result = ask(text, allow_longer=allow_longer)
            is_flagged = is_flagged or bool(result.flagged)
            if as_json:
                typer.echo(json.dumps(_facts(text, result)))
            else:
                _show(console, text, result)
            _warn(result)
    if is_flagged:
        raise typer.Exit(1)


def _read(
    arguments: list[str], file: Path | None, network: Path | None, state: Path | None
) -> tuple[Path | None, list[str]]:
    """The model's folder, where all runs here, and the texts."""
    if (network is None) != (state is None):
        raise UsageError("--network and --state go together")
    model = None
    if network is None:
        if not arguments:
            raise UsageError("give MODEL, a quantised folder, or --network and --state")
        model, arguments = Path(arguments[0]), arguments[1:]
    texts = list(arguments)
    if file is not None:
        try:
            lines = file.read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"cannot read the texts in {file}") from error
        texts += [line for line in lines if line.strip()]
    if not texts:
        raise UsageError("no text: give one, or --file")
    return model, texts


@contextlib.contextmanager
def _client(
    model: Path | None, network: Path | None, state: Path | None, threads: int | None,
    patience: float,
) -> Iterator[Client]:  # fmt: skip
    from veilrun.mpc import Client, local

    if model is not None:
        with local(model, n_threads=threads or 1) as client:
            yield client
    elif network is not None and state is not None:
        with Client(network, state, n_threads=threads, patience_s=patience) as client:
            yield client


def _facts(text: str, result: Classification | Embedding) -> dict[str, Any]:
    import dataclasses

    from veilrun.mpc import Classification

    if isinstance(result, Classification):
        said: dict[str, Any] = {
            "label": result.label,
            "probabilities": dict(result.probabilities),
            "logits": result.logits.tolist(),
        }
    else:
        said = {"embedding": result.vector.tolist()}
    return {
        "text": text,
        **said,
        "flagged": dict(result.flagged),
        "serial": result.serial,
        "cost": dataclasses.asdict(result.cost),
        "mode": MPC.name,
    }


def _show(console: Console, text: str, result: Classification | Embedding) -> None:
    from veilrun.mpc import Classification

    console.print(f"\n{escape(text)}", soft_wrap=True)
    if isinstance(result, Classification):
        ranked = sorted(result.probabilities.items(), key=lambda one: -one[1])
        rest = "  ".join(f"{escape(label)} {share:.1%}" for label, share in ranked)
        console.print(f"[bold green]{escape(result.label)}[/]   {rest}", soft_wrap=True)
    else:
        console.print(" ".join(f"{value:.5f}" for value in result.vector), soft_wrap=True)
    console.print(f"[dim]{_cost_line(result.cost)}[/]", soft_wrap=True)


def _cost_line(cost: Cost) -> str:
    n_bytes = cost.online_bytes + cost.embedding_bytes
    return (
        f"{cost.n_tokens} tokens, {cost.n_rounds} rounds, {n_bytes / 1e6:.2f} MB online in "
        f"{cost.online_s:.2f} s; before: {cost.offline_bytes / 1e6:.2f} MB, fetched in "
        f"{cost.fetch_s:.2f} s, prepared in {cost.prepare_s:.2f} s"
    )


def _warn(result: Classification | Embedding) -> None:
    counts: dict[str, int] = {}
    for table, count in result.flagged.items():
        place = _place(table)
        counts[place] = counts.get(place, 0) + count
    for place, count in counts.items():
        values = "1 value" if count == 1 else f"{count} values"
        stderr().print(
            f"[yellow]warning:[/] {values} of {place} came near the end of their window: the "
            "answer may be wrong",
            soft_wrap=True,
        )


def _place(table: str) -> str:
    """`layer_3.gelu_0` for people: layer 3's gelu."""
    layer, _, name = table.rpartition(".")
    name = "gelu" if name.startswith("gelu_") else name.replace("_", " ")
    return f"{layer.replace('_', ' ')}'s {name}" if layer else f"the {name}"
