"""`veilrun demo`: the whole loop on the bundled model, and what the node saw of it."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table

from veilrun.cli.options import JsonOption, guarantee, stderr, stdout
from veilrun.types import EE

if TYPE_CHECKING:  # torch takes seconds to import, and --help needs none of it
    from veilrun.demo import Story


def demo(
    prompt: Annotated[
        str | None, typer.Option(help="A line of Shakespeare; the model answers with the next.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """See it work: encrypt a small model, serve it, talk to it, see what the node saw. Offline."""
    console = stderr() if as_json else stdout()
    console.print("[bold]veilrun demo[/]: a small model of our own, nothing leaves this machine\n")
    with console.status("loading"):
        from veilrun.demo import PROMPT, tell

    typed = prompt or PROMPT
    story = asyncio.run(
        tell(
            typed,
            on_step=lambda step: console.print(f"[cyan]•[/] {escape(step)}"),
            on_text=lambda piece: console.print(piece, end="", style="green", markup=False),
        )
    )
    console.print("\n")
    if as_json:
        stdout().print_json(json.dumps(_facts(story)))
    else:
        _show(console, story)


def _show(console: Console, story: Story) -> None:
    saw = (
        f"[dim]prompt, as ids[/]\n{_some(story.seen_ids)}\n"
        f"[dim]read with the public tokenizer[/]\n{_printable(story.seen_as_text)}\n\n"
        f"[dim]answer, as ids[/]\n{_some(story.answered_ids)}\n"
        f"[dim]read with the public tokenizer[/]\n{_printable(story.answered_as_text)}"
    )
    panels = Table.grid(expand=True)
    for _ in range(3):
        panels.add_column(ratio=1)
    panels.add_row(
        Panel(escape(story.typed), title="what you typed", style="green"),
        Panel(saw, title="what the node saw", style="red"),
        Panel(escape(story.answer), title="what you got", style="green"),
    )
    console.print(panels)
    agreed, made = story.agreement, story.encryption
    console.print(
        f"\nsame top token as the plain model at {agreed.top_token_share:.2%} of "
        f"{agreed.n_positions} positions; {made.n_bytes / 1e6:.1f} MB of weights under the key\n"
    )
    console.print("[bold]Who is protected from whom[/]")
    console.print(guarantee(EE))
    console.print(
        "\nThe bundled model's weights are public, so a host that looks could match them and undo "
        "this key. SECURITY.md says when the mode is worth having.",
    )


def _some(ids: tuple[int, ...]) -> str:
    shown = " ".join(map(str, ids[:24]))
    return shown + (f" … {len(ids)} in all" if len(ids) > 24 else "")


def _printable(text: str) -> str:
    """Text as it reads, on one line, without what a terminal would act on."""
    return escape("".join(one if one.isprintable() else "\N{MIDDLE DOT}" for one in text))


def _facts(story: Story) -> dict[str, object]:
    return {
        "typed": story.typed,
        "answer": story.answer,
        "node_saw_ids": story.seen_ids,
        "node_saw_as_text": story.seen_as_text,
        "node_answered_ids": story.answered_ids,
        "node_answered_as_text": story.answered_as_text,
        "top_token_share": story.agreement.top_token_share,
        "mode": story.mode_header,
    }
