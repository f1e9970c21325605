"""What a card says in one line, computed from its numbers.

An attacker counts as not stopped above half of the tokens. Below, the measure is guessing: who
always says the commonest token. A share whose interval lies above that is something learnt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from veilrun.attacks.card import Card, Outcome
from veilrun.attacks.levels import Level
from veilrun.attacks.metrics import Rate
from veilrun.attacks.wording import duration, percent

Tone = Literal["open", "partial", "held", "unknown"]

READS: Final = 0.5
WITH_BASE: Final = (Level.BASE, Level.PAIRS, Level.FINE_TUNE, Level.TWO_HOSTS)
_WHO: Final = {
    Level.BASE: "a host with the public base",
    Level.PAIRS: "a host with the base and {n_pairs} known pairs",
    Level.FINE_TUNE: "a host with the base of this fine-tune",
    Level.TWO_HOSTS: "two colluding hosts with the base",
    Level.HOST: "a host without the base",
    Level.WIRE: "who watches ids",
}
"""Attackers, in the order in which a verdict speaks of them."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """tone: how bad it is. headline: the judgement. line: the numbers it rests on."""

    tone: Tone
    headline: str
    line: str


def verdict(card: Card) -> Verdict:
    """The card in two sentences."""
    rates = {
        level: best.rate
        for level in card.levels
        if (best := card.strongest(level)) is not None and best.rate is not None
    }
    with_base = [rate for level, rate in rates.items() if level in WITH_BASE]
    on_the_wire = rates.get(Level.WIRE)
    if on_the_wire is not None and on_the_wire.share > READS:
        # Whoever holds more sees the ids too.
        tone: Tone = "open"
        headline = "No attacker is stopped, not even one who sees nothing but ids."
    else:
        tone, headline = _judge(with_base, card.basis.commonest)
    return Verdict(tone, headline, _line(card))


def _judge(rates: list[Rate], commonest: float) -> tuple[Tone, str]:
    """The attackers with the public base; commonest: what guessing reads."""
    if not rates:
        return "unknown", "No attack with the public base gave a result, so none is ruled out."
    if min(rate.share for rate in rates) > READS:
        return "open", "No attacker with the public base is stopped."
    if max(rate.share for rate in rates) > READS:
        return "open", "Not every attacker with the public base is stopped."
    if max(rate.low for rate in rates) > commonest:
        return "partial", "Attackers with the public base read part of the text."
    return "held", "With the public base, these attacks read no more than guessing does."


def _line(card: Card) -> str:
    unit = "tokens" if card.basis.n_tokens else "vocabulary"
    parts: list[str] = []
    said: list[Outcome] = []
    for level in _WHO:
        best = card.strongest(level)
        # An attacker that does no better than the one before adds nothing.
        if level not in card.levels or best is None or best in said or best.rate is None:
            continue
        said.append(best)
        who = _WHO[level].format(n_pairs=card.basis.n_pairs)
        share = percent(best.rate.share)
        reads = share if parts else f"reads {share} of the {unit}"
        title, took = card.facts(best.attack).title, duration(best.elapsed_s)
        parts.append(f"{who} {reads} ({title}, {took})")
    if not parts:
        return "No attack gave a result."
    line = "; ".join(parts)
    return f"{line[0].upper()}{line[1:]}."
