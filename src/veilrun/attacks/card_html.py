"""The security card as one page: no script, nothing fetched, readable on a phone and in the dark.

Its own content policy forbids whatever is not in it.

Invariant: every value is escaped; no name can become markup.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import Final

from veilrun.attacks.card import Card, Outcome
from veilrun.attacks.card_style import STYLE
from veilrun.attacks.levels import Level
from veilrun.attacks.metrics import Rate
from veilrun.attacks.verdict import READS, Tone, verdict
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

_POLICY: Final = (
    "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
)
_HEADINGS: Final = (
    "attack",
    "recovers",
    "tokens",
    "vocabulary",
    "BLEU",
    "names",
    "time",
    "memory",
    "control",
)


def card_html(card: Card) -> str:
    """The page."""
    judged = verdict(card)
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>Security card: {_safe(card.model)}</title>",
            f"<style>{STYLE}</style></head><body><main>",
            '<header><p class="eyebrow">veilrun security card</p>',
            f'<h1>{_safe(card.model)}</h1><p class="soft">{_safe(card.mode)}</p></header>',
            f'<section class="verdict {judged.tone}"><p class="headline">'
            f"{_safe(judged.headline)}</p><p>{_safe(judged.line)}</p></section>",
            *_levels(card),
            *_table(card),
            *_stops(card),
            *_untried(card),
            *_basis(card),
            f"<footer><p>{_safe(LIMITS)}</p></footer>",
            "</main></body></html>",
            "",
        ]
    )


def _levels(card: Card) -> Iterable[str]:
    yield "<section><h2>What each attacker reads</h2>"
    yield (
        '<p class="soft">The strongest attack of each, over all that it can make. A bar is the '
        "share of tokens read: solid up to the lower end of its 95&nbsp;% interval, pale up to the "
        f"upper. The thin mark is guessing ({_safe(percent(card.basis.commonest))}).</p>"
    )
    yield '<ol class="levels sheet">'
    yield from (_level(card, level) for level in card.levels)
    yield "</ol></section>"


def _level(card: Card, level: Level) -> str:
    best = card.strongest(level)
    rate = best.rate if best else None
    who = (
        f'<div><h3>{_safe(level_title(card, level))}</h3><p class="soft">'
        f"{_safe(level.holds)}</p></div>"
    )
    if best is None or rate is None:
        return f'<li>{who}<p class="soft">no attack gave a result</p></li>'
    by = f"{card.facts(best.attack).title}, {duration(best.elapsed_s)}; {interval(rate)}"
    return (
        f'<li>{who}<div class="reads {_tone(card, rate)}"><p class="share">'
        f"{_safe(percent(rate.share))}</p>{_bar(card, rate)}"
        f'<p class="soft">{_safe(by)}</p></div></li>'
    )


def _table(card: Card) -> Iterable[str]:
    yield "<section><h2>Every attack</h2>"
    yield (
        '<p class="soft">Each stands with the least attacker that can make it. The control is the '
        "same attack on what it must break.</p>"
    )
    yield '<div class="sheet"><table><thead><tr>'
    yield from (f'<th scope="col">{name}</th>' for name in _HEADINGS)
    yield "</tr></thead>"
    for level in card.levels:
        made = [one for one in card.outcomes if one.level == level]
        if made:
            title = _safe(level_title(card, level))
            yield f'<tbody><tr class="group"><th colspan="{len(_HEADINGS)}">{title}</th></tr>'
            yield from (_row(card, one) for one in made)
            yield "</tbody>"
    yield "</table></div></section>"


def _row(card: Card, outcome: Outcome) -> str:
    facts, score = card.facts(outcome.attack), outcome.score
    control = _safe(control_words(outcome.control)) if outcome.control else ""
    cells = [
        _cell("recovers", _safe(facts.recovers)),
        _tokens(card, outcome),
        _cell("vocabulary", _share(score.vocabulary if score else None), "number"),
        _cell("BLEU", "" if score is None or score.bleu is None else f"{score.bleu:.2f}", "number"),
        _cell("names", _part(score.names if score else None), "number"),
        _cell("time", _safe(duration(outcome.elapsed_s)), "number"),
        _cell("memory", _safe(megabytes(outcome.extra_bytes)), "number"),
        _cell("control", control),
    ]
    return f'<tr><th scope="row" class="attack">{_safe(facts.title)}</th>{"".join(cells)}</tr>'


def _tokens(card: Card, outcome: Outcome) -> str:
    score = outcome.score
    if score is None:
        return _cell("tokens", f"<span>failed: {_safe(outcome.failed or '')}</span>", "tokens")
    words = _safe(tokens_words(outcome))
    if score.tokens is None:
        return _cell("tokens", f"<span>{words}</span>" if words else "", "tokens")
    content = (
        f"<span><strong>{words}</strong>{_bar(card, score.tokens)}<small>"
        f"{_safe(interval(score.tokens))}, of {score.tokens.n:,}</small></span>"
    )
    return _cell("tokens", content, f"tokens {_tone(card, score.tokens)}")


def _cell(label: str, content: str, kind: str = "") -> str:
    """content: escaped already."""
    names = f"{kind} empty" if not content else kind
    return f'<td data-label="{label}" class="{names.strip()}">{content}</td>'


def _share(rate: Rate | None) -> str:
    return _part(None if rate is None else rate.share)


def _part(share: float | None) -> str:
    return "" if share is None else _safe(percent(share))


def _tone(card: Card, rate: Rate) -> Tone:
    if rate.share > READS:
        return "open"
    return "partial" if rate.low > card.basis.commonest else "held"


def _bar(card: Card, rate: Rate) -> str:
    """0 to 100 % from left to right."""
    low, high = 100.0 * rate.low, 100.0 * rate.high
    return (
        '<svg class="bar" viewBox="0 0 100 12" preserveAspectRatio="none" role="img" '
        f'aria-label="{_safe(percent(rate.share))}">'
        f'<rect class="part" width="{low:.2f}" height="12"/>'
        f'<rect class="span" x="{low:.2f}" width="{high - low:.2f}" height="12"/>'
        f'<rect class="guess" x="{100.0 * card.basis.commonest:.2f}" width="0.35" height="12"/>'
        "</svg>"
    )


def _stops(card: Card) -> Iterable[str]:
    yield '<section><h2>What would stop them</h2><dl class="pairs sheet">'
    for one in card.attacks:
        about = f"Uses {one.knows}. Work: {one.cost}. Source: {one.source}."
        yield (
            f"<div><dt>{_safe(one.title)}</dt><dd>{_safe(one.stops)}"
            f'<span class="soft">{_safe(about)}</span></dd></div>'
        )
    yield "</dl></section>"


def _untried(card: Card) -> Iterable[str]:
    if card.untried:
        rows = [(card.facts(one.attack).title, one.reason) for one in card.untried]
        yield from _pairs("Not tried", rows)


def _basis(card: Card) -> Iterable[str]:
    yield from _pairs("How this was measured", basis_rows(card))


def _pairs(heading: str, rows: Iterable[tuple[str, str]]) -> Iterable[str]:
    yield f'<section><h2>{_safe(heading)}</h2><dl class="pairs sheet">'
    yield from (f"<div><dt>{_safe(name)}</dt><dd>{_safe(words)}</dd></div>" for name, words in rows)
    yield "</dl></section>"


def _safe(text: str) -> str:
    """Text as it is, on the page; a number and its % stay on one line."""
    return escape(text).replace(" %", "&nbsp;%")
