"""`veilrun encrypt`: a checkpoint that computes on encrypted tokens."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
from veilrun.errors import UsageError

if TYPE_CHECKING:  # torch takes seconds to import, and --help needs none of it
    from veilrun.equivariant.compile import Encryption


class StrengthName(StrEnum):
    """How the residual stream is hidden."""

    structured = "structured"
    haar = "haar"
    permutation = "permutation"


class EndsName(StrEnum):
    """Who holds embedding and head."""

    node = "node"
    client = "client"


ModelArgument = Annotated[str, typer.Argument(help="A folder, or a model id on the hub.")]
OutArgument = Annotated[
    Path, typer.Argument(help="The folder to make; this is what the node gets.")
]
StrengthOption = Annotated[
    StrengthName | None,
    typer.Option(help="How the residual stream is hidden; structured where possible."),
]
NoiseOption = Annotated[
    float | None,
    typer.Option(
        min=0,
        help="Hide the residual stream in a longer one and blur the embedding by this many "
        "standard deviations, the head by a fifth of it. Costs accuracy: see `veilrun check`.",
    ),
]
ExpansionOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="With --noise: how much longer at either side; 128 or a quarter of the stream, "
        "whichever is less.",
    ),
]
EndsOption = Annotated[
    EndsName,
    typer.Option(help="Who holds embedding and head; the client computes with them then."),
]

DraftOfOption = Annotated[
    Path | None,
    typer.Option(
        help="Encrypted model for which MODEL shall be a draft: a smaller one with the same "
        "tokenizer that guesses ahead (`veilrun node --tune ... --draft OUT`)."
    ),
]


def encrypt(
    model: ModelArgument,
    out: OutArgument,
    key_file: KeyOption,
    strength: StrengthOption = None,
    noise: NoiseOption = None,
    expansion: ExpansionOption = None,
    ends: EndsOption = EndsName.node,
    draft_of: DraftOfOption = None,
    passphrase_file: PassphraseFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Encrypt a model. OUT goes to the node; the client kit stays beside your key."""
    from veilrun.checkpoint.folder import read_manifest
    from veilrun.equivariant.client import find_client_kit, kits_folder
    from veilrun.equivariant.compile import encrypt as compile_encrypted
    from veilrun.equivariant.covariant import Noise
    from veilrun.keys import load_key

    if expansion is not None and noise is None:
        raise UsageError("--expansion belongs to --noise")
    key = load_key(key_file, read_passphrase(passphrase_file))
    target = None
    if draft_of is not None:
        target = find_client_kit(key_file, key, read_manifest(draft_of).fingerprint)
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
            noise=None if noise is None else Noise.of(noise, expansion),
            ends=ends.value,
            draft_of=target,
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
    elif draft_of is not None:
        stdout().print(
            f"[green]encrypted[/] a draft for {escape(str(draft_of))} into "
            f"[bold]{escape(str(made.folder))}[/]; the node gets both",
            soft_wrap=True,
        )
    else:
        _show(made, model, key_file)


def _show(made: Encryption, model: str, key_file: Path) -> None:
    """What was made, what it protects, and what to do next."""
    from veilrun.types import EE

    console = stdout()
    console.print(
        f"[green]encrypted[/] {made.n_tensors} tensors ({made.n_bytes / 1e6:,.1f} MB, family "
        f"{made.family}, residual key {made.strength}) into [bold]{escape(str(made.folder))}[/]\n"
        f"client kit, keep it with your key: {escape(str(made.client))}",
        soft_wrap=True,
    )
    console.print(guarantee(EE))
    command = ["veilrun", "check", model, str(made.folder), "--key", str(key_file)]
    console.print(f"next: {escape(shlex.join(command))}", soft_wrap=True)
    measure = ["veilrun", "audit", str(made.folder), "--base", model, "--key", str(key_file)]
    console.print(f"measure it: {escape(shlex.join(measure))}", soft_wrap=True)
