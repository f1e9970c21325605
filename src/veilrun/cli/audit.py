"""`veilrun audit`: what does every attacker learn?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from veilrun.cli.options import (
    JsonOption,
    KeyOption,
    PassphraseFileOption,
    read_passphrase,
    stderr,
    stdout,
)

if TYPE_CHECKING:  # torch takes seconds to import, and --help needs none of it
    from veilrun.attacks.attack import Attack
    from veilrun.attacks.audit import OnTask
    from veilrun.attacks.card import Card, Outcome
    from veilrun.attacks.card_files import CardFiles
    from veilrun.attacks.levels import Level

Out = Annotated[Path, typer.Argument(help="The encrypted folder.", metavar="OUT")]
Base = Annotated[
    str,
    typer.Option(
        help="The public model: what was encrypted, or what that was fine-tuned from. A folder "
        "or a hub id."
    ),
]
Text = Annotated[
    Path | None,
    typer.Option(
        help="Text like yours, documents with blank lines between them: half of it is attacked, "
        "attackers know the other half. The base model writes some if none."
    ),
]
Pairs = Annotated[int, typer.Option(min=1, help="Known pairs of a token and its cipher id.")]
CardFolder = Annotated[
    Path | None, typer.Option("--card", help="Where the card goes; OUT.audit if not said.")
]
Only = Annotated[
    list[str] | None, typer.Option(help="Make this attack alone; repeatable.", metavar="ATTACK")
]


def audit(
    out: Out,
    base: Base,
    key_file: KeyOption,
    text: Text = None,
    pairs: Pairs = 64,
    card: CardFolder = None,
    only: Only = None,
    passphrase_file: PassphraseFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Attack an encrypted model as everybody could who may see it; write a security card."""
    import transformers

    from veilrun.attacks.audit import audit as make_attacks
    from veilrun.attacks.audit import planned
    from veilrun.attacks.building import build
    from veilrun.attacks.card_files import write_card
    from veilrun.attacks.card_json import encode_card
    from veilrun.attacks.catalogue import ATTACKS, verify_names
    from veilrun.checkpoint.source import resolve
    from veilrun.keys import load_key

    transformers.logging.disable_progress_bar()  # ours says more
    verify_names(only or [])
    key = load_key(key_file, read_passphrase(passphrase_file))
    folder = card or out.resolve().with_name(f"{out.resolve().name}.audit")
    with _progress() as progress:
        preparing = progress.add_task("preparing texts and models", total=None)
        subject = build(out, key_file, key, resolve(base), text)
        progress.remove_task(preparing)
        plan = planned(subject, ATTACKS, only)
        made = make_attacks(
            subject,
            ATTACKS,
            folder / "results",
            n_pairs=pairs,
            only=only,
            on_task=_bars(progress, plan),
        )
    files = write_card(made, folder)
    if as_json:
        stdout().print_json(encode_card(made).decode())
    else:
        _show(made, files)


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, TimeElapsedColumn(), console=stderr(), transient=True)


def _bars(progress: Progress, plan: dict[str, int]) -> OnTask:
    """One bar for all attacks, and one for each, from its beginning, a step per level."""
    overall = progress.add_task("[bold]all attacks[/]", total=sum(plan.values()))
    bars: dict[str, TaskID] = {}

    def on_task(attack: Attack, level: Level, outcome: Outcome | None) -> None:
        if attack.name not in bars:
            bars[attack.name] = progress.add_task(escape(attack.title), total=plan[attack.name])
        if outcome is not None:
            progress.advance(bars[attack.name])
            progress.advance(overall)

    return on_task


def _show(card: Card, files: CardFiles) -> None:
    from veilrun.attacks.verdict import verdict
    from veilrun.attacks.wording import LIMITS, duration, interval, level_title, percent

    table = Table(title=f"the strongest attack of each attacker on {escape(card.model)}")
    table.add_column("attacker")
    table.add_column("reads", justify="right")
    for heading in ("95 % interval", "by"):
        table.add_column(heading)
    table.add_column("took", justify="right")
    for level in card.levels:
        best = card.strongest(level)
        row = ("", "no attack gave a result", "", "")
        if best is not None and best.rate is not None:
            title, took = card.facts(best.attack).title, duration(best.elapsed_s)
            row = (percent(best.rate.share), interval(best.rate), escape(title), took)
        table.add_row(escape(level_title(card, level)), *row)
    console, judged = stdout(), verdict(card)
    console.print(table)
    colour = {"open": "red", "partial": "yellow", "held": "green", "unknown": "dim"}[judged.tone]
    console.print(f"[bold {colour}]{escape(judged.headline)}[/] {escape(judged.line)}")
    failed = sum(one.failed is not None for one in card.outcomes)
    if failed:
        console.print(f"[yellow]{failed} attack(s) failed; the card says why[/]")
    console.print(LIMITS)
    for path in (files.page, files.markdown, files.json):
        console.print(f"card: {escape(str(path))}", soft_wrap=True)
