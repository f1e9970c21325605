"""`veilrun mpc bench`: what an inference costs, measured beside predicted, or only predicted."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from veilrun.cli.options import JsonOption, stderr, stdout

if TYPE_CHECKING:
    from veilrun.mpc.bench import Measurement
    from veilrun.mpc.cost import Prediction, Seconds

_COUNTS = ("offline_bytes", "embedding_bytes", "online_bytes", "n_rounds")
_SECONDS = {
    "deal_s": "dealing, ahead",
    "deal_cpu_s": "… CPU",
    "prepare_s": "preparing the material",
    "online_s": "online",
    "p1_cpu_s": "… CPU of party 1",
    "p2_cpu_s": "… CPU of party 2",
    "answer_s": "text to answer",
}


def bench(
    model: Annotated[
        Path | None, typer.Option(help="A quantised folder; without one, the shape below.")
    ] = None,
    hidden: Annotated[int, typer.Option(min=1)] = 768,
    layers: Annotated[int, typer.Option(min=1, max=1024)] = 12,
    heads: Annotated[int, typer.Option(min=1)] = 12,
    intermediate: Annotated[int, typer.Option(min=1)] = 3072,
    vocabulary: Annotated[int, typer.Option(min=2, max=1 << 24)] = 30522,
    profile: Annotated[str, typer.Option(help="Widths of the fixed point.")] = "w16a8",
    public_embedding: Annotated[
        bool, typer.Option("--public-embedding", help="The client has the embedding table.")
    ] = False,
    tokens: Annotated[int, typer.Option(help="Length of the text, in tokens.", min=1)] = 8,
    repeats: Annotated[int, typer.Option(help="Inferences to measure.", min=1, max=1000)] = 3,
    threads: Annotated[int, typer.Option(help="Threads of each party.", min=1)] = 1,
    predict: Annotated[
        bool, typer.Option("--predict", help="Say bytes, rounds and time; run nothing.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """What one inference costs: bytes and rounds exactly, and seconds.

    Three processes on this machine run it, without a network between them; with --predict, none
    does, and the time on two networks is an estimate.
    """
    from veilrun.mpc import cost
    from veilrun.mpc.model.files import load_public
    from veilrun.mpc.model.quantised import CLIENT_EMBEDDING, SECRET_EMBEDDING
    from veilrun.mpc.profile import profile_of

    shape = replace(
        cost.BERT_BASE,
        hidden=hidden,
        n_layers=layers,
        n_heads=heads,
        intermediate=intermediate,
        n_vocab=vocabulary,
    )
    widths = profile_of(profile)
    embedding = CLIENT_EMBEDDING if public_embedding else SECRET_EMBEDDING
    public = cost.shape_only(shape, widths, embedding) if model is None else load_public(model)
    said = cost.predict(public, tokens)
    if predict:
        speed = cost.measure(tokens, public.profile, threads)
        times = {name: cost.seconds(said, link, speed) for name, link in cost.NETWORKS.items()}
        _show_predicted(said, times, as_json=as_json)
        return
    runs = _measured(
        shape if model is None else model,
        tokens,
        repeats,
        n_threads=threads,
        profile=widths,
        embedding=embedding,
    )
    _show_measured(runs, said, as_json=as_json)


def _measured(*arguments: Any, **options: Any) -> list[Measurement]:
    """The runs, and on standard error what is being done."""
    from veilrun.mpc.bench import measure

    with stderr().status("beginning") as status:
        progress: Callable[[str], None] = status.update
        return measure(*arguments, **options, progress=progress)


def _show_measured(runs: Sequence[Measurement], said: Prediction, *, as_json: bool) -> None:
    """Beside the prediction; exit code 1 where bytes or rounds are not those predicted."""
    predicted = {name: getattr(said, name) for name in _COUNTS[:-1]}
    predicted["n_rounds"] = said.n_online_rounds
    is_as_predicted = all(
        getattr(run, name) == predicted[name] for run in runs for name in predicted
    )
    if as_json:
        facts = {
            "n_tokens": said.n_tokens,
            "is_as_predicted": is_as_predicted,
            "predicted": predicted,
            "runs": [asdict(run) for run in runs],
        }
        stdout().print_json(json.dumps(facts))
    else:
        stdout().print(_counts_table(runs, predicted, said.n_tokens))
        stdout().print(_seconds_table(runs))
        stdout().print(
            "[green]bytes and rounds are exactly those predicted[/]"
            if is_as_predicted
            else "[red]bytes or rounds are not those predicted[/]"
        )
    if not is_as_predicted:
        raise typer.Exit(1)


def _counts_table(
    runs: Sequence[Measurement], predicted: dict[str, int], n_tokens: int
) -> Table:  # fmt: skip
    title = f"one inference, {n_tokens} tokens, embedding not among the rounds"
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for column in ("measured", "predicted", "per token"):
        table.add_column(column, justify="right")
    for name, wanted in predicted.items():
        found = sorted({getattr(run, name) for run in runs})
        words = name.removeprefix("n_").replace("_", " ")
        per_token = "" if name == "n_rounds" else f"{wanted / n_tokens:,.0f}"
        table.add_row(words, ", ".join(f"{one:,}" for one in found), f"{wanted:,}", per_token)
    return table


def _seconds_table(runs: Sequence[Measurement]) -> Table:
    title = f"seconds, {len(runs)} runs on this machine, no network"
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for column in ("least", "median", "most"):
        table.add_column(column, justify="right")
    for name, words in _SECONDS.items():
        values = [getattr(run, name) for run in runs]
        table.add_row(words, *(f"{one(values):.3f}" for one in (min, median, max)))
    return table


def _show_predicted(said: Prediction, times: dict[str, Seconds], *, as_json: bool) -> None:
    if as_json:
        facts = said.to_json() | {
            "seconds": {name: asdict(one) | {"answer": one.answer} for name, one in times.items()},
        }
        stdout().print_json(json.dumps(facts))
        return
    stdout().print(_bytes_table(said))
    stdout().print(_times_table(times))


def _bytes_table(said: Prediction) -> Table:
    table = Table(title=f"bytes of one inference, {said.n_tokens} tokens", title_justify="left")
    table.add_column("phase")
    table.add_column("from, to")
    table.add_column("bytes", justify="right")
    table.add_column("rounds", justify="right")
    rows: list[tuple[str, str, int, int | None]] = [
        ("set-up, once per model", "dealer → party 2", said.setup_bytes, None),
        ("offline", "dealer → party 1", said.to_p1_bytes, None),
        ("", "dealer → party 2", said.to_p2_bytes, None),
    ]
    if said.n_embedding_rounds:
        rows += [
            ("embedding", "party 1 → dealer", said.question_bytes, said.n_embedding_rounds),
            ("", "party 1 → party 2", said.question_bytes, None),
            ("", "dealer → party 1", said.answer_bytes, None),
        ]
    rows += [
        ("online", "party 1 → party 2", said.p1_to_p2_bytes, said.n_online_rounds),
        ("", "party 2 → party 1", said.p2_to_p1_bytes, None),
        ("all but set-up", "", said.total_bytes, said.n_embedding_rounds + said.n_online_rounds),
    ]
    for phase, way, n_bytes, n_rounds in rows:
        table.add_row(phase, way, f"{n_bytes:,}", "" if n_rounds is None else str(n_rounds))
    return table


def _times_table(times: dict[str, Seconds]) -> Table:
    from veilrun.mpc.cost import NETWORKS

    table = Table(title="estimated seconds, with this machine's speed", title_justify="left")
    table.add_column("network")
    for column in ("offline", "embedding", "online", "text to answer"):
        table.add_column(column, justify="right")
    for name, one in times.items():
        link = NETWORKS[name]
        rate = f"{link.bytes_per_s * 8 / 1e6:,.0f} Mbit/s"
        table.add_row(
            f"{name}: {link.latency_s * 1e3:g} ms one way, {rate}",
            *(f"{value:.2f}" for value in (one.offline, one.embedding, one.online, one.answer)),
        )
    return table
