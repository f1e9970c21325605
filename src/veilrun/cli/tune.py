"""`veilrun tune`: which way of running a model is fastest, learnt from past runs."""

from __future__ import annotations

import typer

from veilrun.cli.tune_arms import arms
from veilrun.cli.tune_collect import collect
from veilrun.cli.tune_evaluate import evaluate
from veilrun.cli.tune_recommend import recommend
from veilrun.cli.tune_train import train

HELP = """Pick how a node runs its model, for this model, machine and workload, from past runs.

[bold]Ask[/]      the tuner that comes along
  veilrun tune recommend MODEL --workload chat
  veilrun node out --tune auto --workload chat

[bold]Teach[/]    it with runs of your own machines
  veilrun tune collect runs
  veilrun tune evaluate runs
  veilrun tune train runs my-tuner
"""

app = typer.Typer(help=HELP, rich_markup_mode="rich", no_args_is_help=True)

_ASK, _TEACH = "Ask", "Teach"
app.command(rich_help_panel=_ASK)(recommend)
app.command(rich_help_panel=_ASK)(arms)
app.command(rich_help_panel=_TEACH)(collect)
app.command(rich_help_panel=_TEACH)(train)
app.command(rich_help_panel=_TEACH)(evaluate)
