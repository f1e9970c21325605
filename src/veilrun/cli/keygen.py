"""`veilrun keygen`: a new key file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from veilrun.cli.options import JsonOption, PassphraseFileOption, read_passphrase, stdout


def keygen(
    path: Annotated[Path, typer.Argument(metavar="KEY", help="The key file to make.")],
    passphrase_file: PassphraseFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a secret key: 32 random bytes, sealed under a passphrase, mode 0600."""
    from veilrun.keys import MasterKey, save_key, verify_absent

    verify_absent(path)  # before the passphrase is asked for, twice
    save_key(MasterKey.generate(), path, read_passphrase(passphrase_file, confirm=True))
    if as_json:
        stdout().print_json(json.dumps({"key": str(path)}))
    else:
        stdout().print(
            f"[green]made[/] {escape(str(path))}. Keep it and its passphrase: without both, "
            "nothing that was encrypted with it can be used.",
            soft_wrap=True,
        )
