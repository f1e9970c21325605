"""`veilrun encrypt`: a checkpoint that computes on encrypted tokens."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.progress import Progress

from veilrun.cli.options import (
    JsonOption,
    KeyOption,
    PassphraseFileOption,
    guarantee,
    read_passphrase,
    stderr,
    stdout,
)


class StrengthName(StrEnum):
    """How the residual stream is hidden."""

    structured = "structured"
    haar = "haar"
    permutation = "permutation"


def encrypt(
    model: Annotated[str, typer.Argument(help="A folder, or a model id on the hub.")],
    out: Annotated[Path, typer.Argument(help="The folder to make; this is what the node gets.")],
    key_file: KeyOption,
    strength: Annotated[
        StrengthName | None,
        typer.Option(help="How the residual stream is hidden; structured where possible."),
    ] = None,
    passphrase_file: PassphraseFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Encrypt a model. OUT goes to the node; the client kit stays beside your key."""
    from veilrun.equivariant.client import kits_folder
    from veilrun.equivariant.compile import encrypt as compile_encrypted
    from veilrun.keys import load_key
    from veilrun.types import EE

    key = load_key(key_file, read_passphrase(passphrase_file))
    with Progress(console=stderr(), transient=True) as progress:
        bars = {
            "digest": progress.add_task("reading", total=None),
            "encrypt": progress.add_task("encrypting", total=None),
        }
        made = compile_encrypted(
            model,
            out,
            key,
            kits=kits_folder(key_file),
            strength=strength.value if strength else None,
            on_bytes=lambda phase, done, total: progress.update(
                bars[phase], completed=done, total=total
            ),
        )
    if as_json:
        facts = {
            name: str(value) if isinstance(value, Path) else value
            for name, value in asdict(made).items()
        }
        stdout().print_json(json.dumps(facts))
        return
    console = stdout()
    console.print(
        f"[green]encrypted[/] {made.n_tensors} tensors ({made.n_bytes / 1e6:,.1f} MB, family "
        f"{made.family}, residual key {made.strength}) into [bold]{escape(str(made.folder))}[/]\n"
        f"client kit, keep it with your key: {escape(str(made.client))}",
        soft_wrap=True,
    )
    console.print(guarantee(EE))
    command = ["veilrun", "check", model, str(out), "--key", str(key_file)]
    console.print(f"next: {escape(shlex.join(command))}", soft_wrap=True)
