"""`veilrun node --tune`: which arm the node runs, by name or by advice and a moment's trial."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from veilrun.cli.options import stderr
from veilrun.cli.tune_recommend import load_tuner, read_workload
from veilrun.errors import RefusedError, UsageError

if TYPE_CHECKING:
    from veilrun.tune.arms import Arm
    from veilrun.wire.manifest import Manifest

AUTO = "auto"

TuneOption = Annotated[
    str | None,
    typer.Option(
        "--tune",
        help="How to run the model: `auto`, or an arm out of `veilrun tune arms`. It says how many "
        "requests run together, so --max-running then only bounds how many are let in.",
    ),
]
RecordsOption = Annotated[
    Path | None,
    typer.Option(
        "--tune-records",
        help="Data set that --tune auto adds its measurements to: times and shapes, no requests.",
    ),
]
NoTrialOption = Annotated[
    bool,
    typer.Option("--no-trial", help="Take the tuner's advice without trying it for a moment."),
]


@dataclass(frozen=True, slots=True)
class TuneOptions:
    """What the command line says about tuning, as it says it."""

    tune: str | None
    workload: str | None
    tuner: Path | None
    allow_approximate: bool
    draft: Path | None
    records: Path | None
    no_trial: bool

    def check(self, manifest: Manifest) -> None:
        """Refuse options that would have no effect, and a draft for another model."""
        of_auto = {
            "--workload": self.workload,
            "--tuner": self.tuner,
            "--tune-records": self.records,
            "--no-trial": self.no_trial,
        }
        idle = [name for name, value in of_auto.items() if value]
        if self.tune != AUTO and idle:
            raise UsageError(f"{idle[0]} is an option of --tune auto")
        if self.tune is None and (self.allow_approximate or self.draft):
            raise UsageError("--draft and --allow-approximate-weights are options of --tune")
        if self.no_trial and self.records:
            raise UsageError("--tune-records keeps what a trial measures: leave out --no-trial")
        if self.draft is not None:
            _check_draft(self.draft, manifest)


def _check_draft(draft: Path, manifest: Manifest) -> None:
    """Refuse a draft that guesses in another vocabulary, or whose weights are damaged."""
    from veilrun.node.folder import open_folder, verify_weights

    own = open_folder(draft)
    if own.fingerprint != manifest.fingerprint:
        raise UsageError(
            f"{draft} is no draft for this model: make one with `veilrun encrypt MODEL DRAFT "
            "--draft-of OUT` under the model's key"
        )
    verify_weights(draft, own)


def chosen_arm(options: TuneOptions, out: Path, max_model_len: int | None) -> Arm:
    """The arm to run. With `auto` this takes up to a minute.

    Raises:
        RefusedError: the named arm's answers would differ, and nobody said that they may.
    """
    from veilrun.tune.arms import by_name

    if options.tune != AUTO:
        arm = by_name(options.tune or "")
        if not arm.is_exact and not options.allow_approximate:
            raise RefusedError(
                f"answers of {arm.name} differ a little from the stored weights'; add "
                "--allow-approximate-weights if that is wanted"
            )
        return arm
    from veilrun.node.tuning import Wish, choose
    from veilrun.tune.machine import probe

    wish = Wish(
        read_workload(options.workload or "chat"),
        allow_approximate=options.allow_approximate,
        draft=options.draft,
        try_out=not options.no_trial,
        records=options.records,
    )
    console = stderr()
    with console.status("probing the machine") as status:
        machine, tuner = probe(), load_tuner(options.tuner)
        choice = asyncio.run(
            choose(
                out,
                tuner,
                wish,
                machine,
                max_model_len=max_model_len,
                on_step=status.update,
            )
        )
    console.print(f"tuned to [bold]{escape(choice.describe())}[/]", soft_wrap=True)
    for leak in choice.arm.leaks():
        console.print(f"[yellow]this arm leaks:[/] {escape(leak)}", soft_wrap=True)
    return choice.arm
