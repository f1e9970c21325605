"""Options that several commands share, and how they are read."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from veilrun.config import PASSPHRASE_VARIABLE, passphrase_from_environment
from veilrun.errors import KeyFileError
from veilrun.types import Mode

KeyOption = Annotated[Path, typer.Option("--key", help="Your key file.")]
PassphraseFileOption = Annotated[
    Path | None,
    typer.Option(
        "--passphrase-file",
        help=f"Read the key's passphrase from this file instead of asking ({PASSPHRASE_VARIABLE} "
        "works too).",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="One line of JSON instead of a table.")]


def read_passphrase(passphrase_file: Path | None, *, confirm: bool = False) -> str:
    """The passphrase: from the file, the environment, or a prompt (twice with `confirm`).

    Raises:
        KeyFileError: the file cannot be read, or there is nobody to ask.
    """
    if passphrase_file is not None:
        try:
            return passphrase_file.read_text().rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            raise KeyFileError(f"cannot read the passphrase file {passphrase_file}") from error
    if (passphrase := passphrase_from_environment()) is not None:
        return passphrase
    if not sys.stdin.isatty():
        raise KeyFileError(f"no passphrase: give --passphrase-file or set {PASSPHRASE_VARIABLE}")
    return str(typer.prompt("Passphrase", hide_input=True, confirmation_prompt=confirm))


def guarantee(mode: Mode) -> Table:
    """The guarantee ladder's row of a mode, for people."""
    table = Table(title=f"mode {mode.name}", title_justify="left", show_header=False, box=None)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    table.add_row("the node gets", mode.node_gets)
    table.add_row("stands against", f"[green]{mode.stands_against}[/]")
    table.add_row("does not stop", f"[yellow]{mode.does_not_stop}[/]")
    return table


def stdout() -> Console:
    """Where results go."""
    return Console(highlight=False)


def stderr() -> Console:
    """Where progress and remarks go, so that --json output stays clean."""
    return Console(stderr=True, highlight=False)
