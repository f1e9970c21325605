"""`veilrun mpc bench`: what an inference costs, before it runs."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from veilrun.cli.options import JsonOption, stdout
from veilrun.errors import UsageError

if TYPE_CHECKING:
    from veilrun.mpc.cost import Prediction, Seconds


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
    threads: Annotated[int, typer.Option(help="Threads of each party.", min=1)] = 1,
    predict: Annotated[
        bool, typer.Option("--predict", help="Say bytes, rounds and time; run nothing.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """What one inference costs: bytes and rounds exactly, time as an estimate."""
    from veilrun.mpc import cost
    from veilrun.mpc.model.files import load_public
    from veilrun.mpc.model.quantised import CLIENT_EMBEDDING, SECRET_EMBEDDING
    from veilrun.mpc.profile import profile_of

    if not predict:
        raise UsageError("only --predict is there yet: say bytes, rounds and time, run nothing")
    if model is not None:
        public = load_public(model)
    else:
        shape = replace(
            cost.BERT_BASE,
            hidden=hidden,
            n_layers=layers,
            n_heads=heads,
            intermediate=intermediate,
            n_vocab=vocabulary,
        )
        public = cost.shape_only(
            shape, profile_of(profile), CLIENT_EMBEDDING if public_embedding else SECRET_EMBEDDING
        )
    said = cost.predict(public, tokens)
    speed = cost.measure(tokens, public.profile, threads)
    times = {name: cost.seconds(said, link, speed) for name, link in cost.NETWORKS.items()}
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
