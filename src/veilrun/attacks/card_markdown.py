"""The security card as Markdown, for a repository or a model's page.

Invariant: no name or reason can add a column, a heading, a link or HTML.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from veilrun.attacks.card import Card, Outcome
from veilrun.attacks.verdict import verdict
from veilrun.attacks.wording import (
    LIMITS,
    basis_rows,
    control_words,
    duration,
    interval,
    level_title,
    megabytes,
    percent,
    tokens_words,
)

_ACTIVE = re.compile(r"([\\`*_{}\[\]<>#|&!~])")


def card_markdown(card: Card) -> str:
    """The whole card."""
    judged = verdict(card)
    parts = [
        f"# Security card: {plain(card.model)}",
        f"**{judged.headline}** {plain(judged.line)}",
        f"Protection: {plain(card.mode)}. {LIMITS}",
        "## What each attacker reads",
        _table(("attacker", "holds", "reads", "95 % interval", "by", "seconds"), _levels(card)),
        "## Every attack",
        _table(_HEADINGS, [_row(card, one) for one in card.outcomes]),
        "## What would stop them",
        "\n".join(
            f"- **{plain(one.title)}**: {plain(one.stops)}. Source: {plain(one.source)}."
            for one in card.attacks
        ),
    ]
    if card.untried:
        parts += [
            "## Not tried",
            "\n".join(
                f"- {plain(card.facts(one.attack).title)}: {plain(one.reason)}"
                for one in card.untried
            ),
        ]
    parts += ["## How this was measured", _basis(card)]
    return "\n\n".join(parts) + "\n"


_HEADINGS = (
    "attack",
    "attacker",
    "recovers",
    "tokens",
    "95 % interval",
    "vocabulary",
    "BLEU",
    "names",
    "time",
    "memory",
    "control",
)


def plain(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    return _ACTIVE.sub(r"\\\1", " ".join(text.split()))


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _levels(card: Card) -> list[list[str]]:
    rows = []
    for level in card.levels:
        best = card.strongest(level)
        found = ["no attack gave a result", "", "", ""]
        if best is not None and best.rate is not None:
            found = [
                percent(best.rate.share),
                interval(best.rate),
                plain(card.facts(best.attack).title),
                duration(best.elapsed_s),
            ]
        rows.append([plain(level_title(card, level)), plain(level.holds), *found])
    return rows


def _row(card: Card, outcome: Outcome) -> list[str]:
    facts, score = card.facts(outcome.attack), outcome.score
    start = [plain(facts.title), plain(outcome.level), plain(facts.recovers)]
    if score is None:
        found = [f"failed: {plain(outcome.failed or '')}", "", "", "", ""]
    else:
        found = [
            tokens_words(outcome),
            interval(score.tokens) if score.tokens else "",
            percent(score.vocabulary.share) if score.vocabulary else "",
            f"{score.bleu:.2f}" if score.bleu is not None else "",
            percent(score.names) if score.names is not None else "",
        ]
    cost = [duration(outcome.elapsed_s), megabytes(outcome.extra_bytes)]
    return [*start, *found, *cost, plain(control_words(outcome.control))]


def _basis(card: Card) -> str:
    return "\n".join(f"- {plain(name)}: {plain(words)}" for name, words in basis_rows(card))
