"""The command line: one small file per command, each a thin call into the library."""

from __future__ import annotations

import sys

import typer
from rich.console import Console
from rich.markup import escape

from veilrun.cli.attest import attest
from veilrun.cli.audit import audit
from veilrun.cli.chat import chat
from veilrun.cli.check import check
from veilrun.cli.demo import demo
from veilrun.cli.encrypt import encrypt
from veilrun.cli.keygen import keygen
from veilrun.cli.mpc import app as mpc
from veilrun.cli.node import node
from veilrun.cli.proxy import proxy
from veilrun.cli.tune import app as tune
from veilrun.errors import VeilrunError

TOUR = """Run Hugging Face models on machines you do not trust.

Your side holds the key and the text; their side computes on encrypted tokens.

[bold]See it work[/]
  veilrun demo

[bold]Make a model private[/]   MODEL is a hub id or a folder
  veilrun keygen my.key
  veilrun encrypt MODEL out --key my.key
  veilrun check MODEL out --key my.key

[bold]Measure it[/]   what every attacker learns, on a card to keep beside the model
  veilrun audit out --base MODEL --key my.key

[bold]Serve it[/]   on their machine, which never sees text
  veilrun node out

[bold]Serve it faster[/]   an arm that suits model, machine and workload, learnt from past runs
  veilrun node out --tune auto --workload chat

[bold]Use it[/]   on yours, with any OpenAI client at http://127.0.0.1:8080/v1
  veilrun proxy --key my.key --node URL --pin PIN

[bold]Know their machine[/]   its CPU's, GPUs' and TPM's word for it, verified offline
  veilrun attest EVIDENCE --policy mine.toml

[bold]Share it among three[/]   a BERT-like model; no machine sees both the text and the weights
  veilrun mpc quantise MODEL out --calibrate texts.txt
  veilrun mpc classify out "a fine film"

Every mode says whom it protects from whom, and what it does not stop.
"""

app = typer.Typer(
    help=TOUR,
    rich_markup_mode="rich",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_YOURS, _THEIRS = "On your machine", "On their machine"
app.command(rich_help_panel="Start here")(demo)
app.command(rich_help_panel=_YOURS)(keygen)
app.command(rich_help_panel=_YOURS)(encrypt)
app.command(rich_help_panel=_YOURS)(check)
app.command(rich_help_panel=_YOURS)(audit)
app.command(rich_help_panel=_YOURS)(attest)
app.command(rich_help_panel=_YOURS)(proxy)
app.command(rich_help_panel=_YOURS)(chat)
app.command(rich_help_panel=_THEIRS)(node)
app.add_typer(tune, name="tune", rich_help_panel=_THEIRS)
app.add_typer(mpc, name="mpc", rich_help_panel="Among three parties")


def main() -> None:
    """Entry point: errors become one line and an exit code, never a traceback."""
    try:
        app()
    except VeilrunError as error:
        # soft_wrap: paths and commands in the message stay in one piece.
        console = Console(stderr=True, highlight=False)
        console.print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
