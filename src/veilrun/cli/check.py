"""`veilrun check`: is the encrypted model still the same model?"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import Progress
from rich.table import Table

from veilrun.cli.options import (
    JsonOption,
    KeyOption,
    PassphraseFileOption,
    read_passphrase,
    stderr,
    stdout,
)
from veilrun.errors import UsageError

if TYPE_CHECKING:  # torch takes seconds to import, and --help needs none of it
    from veilrun.equivariant.agreement import Agreement


class DtypeOption(StrEnum):
    """What the engine computes in."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


def check(
    model: Annotated[str, typer.Argument(help="The plain model: a folder or a hub id.")],
    out: Annotated[Path, typer.Argument(help="The encrypted folder.")],
    key_file: KeyOption,
    text: Annotated[
        Path | None, typer.Option(help="Text to compare on; some public-domain sentences if none.")
    ] = None,
    positions: Annotated[int, typer.Option(help="Predictions to compare.", min=2)] = 512,
    dtypes: Annotated[
        list[DtypeOption] | None,
        typer.Option(
            "--dtype", help="Compute in this dtype; repeatable. Default: float32, bfloat16."
        ),
    ] = None,
    at_least: Annotated[
        float,
        typer.Option(help="Share of equal top tokens below which the check fails (exit code 1)."),
    ] = 0.95,
    passphrase_file: PassphraseFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare plain and encrypted model on real text, position by position."""
    from veilrun.checkpoint.folder import read_manifest
    from veilrun.checkpoint.source import resolve
    from veilrun.equivariant import agreement
    from veilrun.equivariant.client import find_client_kit
    from veilrun.keys import load_key

    plain = resolve(model)
    key = load_key(key_file, read_passphrase(passphrase_file))
    kit = find_client_kit(key_file, key, read_manifest(out).fingerprint)
    windows = agreement.windows(plain, _words(text), positions, min(256, kit.max_model_len))
    wanted = dtypes or [DtypeOption.float32, DtypeOption.bfloat16]
    with Progress(console=stderr(), transient=True) as progress:
        bar = progress.add_task("comparing", total=len(windows) * len(wanted))
        results = [
            agreement.measure(
                plain,
                out,
                kit.codec,
                windows,
                one.value,
                lambda: progress.advance(bar),
                kit.ends_file,
            )
            for one in wanted
        ]
    if as_json:
        stdout().print_json(json.dumps([asdict(one) for one in results]))
    else:
        stdout().print(_table(results))
    if min(one.top_token_share for one in results) < at_least:
        raise typer.Exit(1)


def _words(path: Path | None) -> str:
    from veilrun.equivariant.agreement import SAMPLE_TEXT

    try:
        return SAMPLE_TEXT if path is None else path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {path} as text") from error


def _table(results: Sequence[Agreement]) -> Table:
    table = Table(title="plain against encrypted")
    table.add_column("computed in")
    for column in ("positions", "same top token", "KL mean", "KL max", "max |Δlogit|"):
        table.add_column(column, justify="right")
    for one in results:
        table.add_row(
            one.dtype,
            f"{one.n_positions:,}",
            f"{one.top_token_share:.2%}",
            f"{one.kl_mean:.1e}",
            f"{one.kl_max:.1e}",
            f"{one.max_logit_difference:.1e} of {one.max_logit:.1f}",
        )
    return table
