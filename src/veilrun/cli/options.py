"""Options that several commands share, and how they are read."""

from __future__ import annotations

import logging
import stat
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from veilrun.config import PASSPHRASE_VARIABLE, passphrase_from_environment
from veilrun.errors import KeyFileError, UsageError, VeilrunError
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
HostOption = Annotated[str, typer.Option(help="Address to listen on.")]
PortOption = Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")]
GraceOption = Annotated[
    float, typer.Option("--grace", min=0, help="Seconds that answers may go on after SIGTERM.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="One line of JSON instead of a table.")]


def read_passphrase(passphrase_file: Path | None, *, confirm: bool = False) -> str:
    """The passphrase: from the file, the environment, or a prompt (twice with `confirm`).

    Raises:
        KeyFileError: the file cannot be read, or by others too, or there is nobody to ask.
    """
    if passphrase_file is not None:
        return _read_secret(passphrase_file, "passphrase", KeyFileError).rstrip("\r\n")
    if (passphrase := passphrase_from_environment()) is not None:
        return passphrase
    if not sys.stdin.isatty():
        raise KeyFileError(f"no passphrase: give --passphrase-file or set {PASSPHRASE_VARIABLE}")
    return str(typer.prompt("Passphrase", hide_input=True, confirmation_prompt=confirm))


def read_api_key(path: Path) -> str:
    """The API key in a file: one line of printable characters.

    Raises:
        UsageError: the file cannot be read, or by others too, or holds something else.
    """
    key = _read_secret(path, "API key", UsageError).strip()
    if not key or not key.isprintable():
        raise UsageError(f"{path} does not hold one line with an API key")
    return key


def _read_secret(path: Path, what: str, kind: type[VeilrunError]) -> str:
    """The text of a file that only its owner may read, as `load_key` asks of key files."""
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise kind(f"cannot read the {what} in {path}") from error
    if mode & 0o077:
        raise kind(f"{path} can be read by others (mode {mode:04o}); run: chmod 600 {path}")
    return text


def log_to_stderr() -> None:
    """Show veilrun's log lines; they hold counts and states, never text, ids or keys."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("veilrun")
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)


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
