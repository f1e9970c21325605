"""`veilrun mpc`: a BERT-like model among three parties, none of which sees text and weights."""

from __future__ import annotations

import typer

from veilrun.cli.mpc_bench import bench
from veilrun.cli.mpc_classify import classify
from veilrun.cli.mpc_deal import deal
from veilrun.cli.mpc_identity import identity
from veilrun.cli.mpc_party import party
from veilrun.cli.mpc_quantise import quantise

HELP = """Run BERT-like models on secret shares: no machine has both the text and the weights.

[bold]The owner of the model[/]
  veilrun mpc quantise MODEL out --calibrate texts.txt
  veilrun mpc bench --model out
"""

app = typer.Typer(help=HELP, rich_markup_mode="rich", no_args_is_help=True)

_OWNER, _ANYBODY = "The owner of the model", "Before you start"
app.command(rich_help_panel=_ANYBODY)(bench)
app.command(rich_help_panel=_OWNER)(quantise)
app.command(rich_help_panel=_OWNER)(deal)
app.command(rich_help_panel="The assistant")(party)
app.command(rich_help_panel="The client")(classify)
app.command(rich_help_panel=_ANYBODY)(identity)
