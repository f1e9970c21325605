"""How a card's numbers and attackers are put in words, the same in every form of it."""

from __future__ import annotations

from typing import Final

from veilrun.attacks.card import Card, Control, Outcome
from veilrun.attacks.levels import Level
from veilrun.attacks.metrics import Rate

LIMITS: Final = "A low number means that these attacks failed, not that none can succeed."
_TITLES: Final = {
    Level.WIRE: "Who watches ids on the wire",
    Level.HOST: "Host without the base",
    Level.BASE: "Host with the public base",
    Level.PAIRS: "Host with base and {n_pairs} known pairs",
    Level.FINE_TUNE: "Host with the base of this fine-tune",
    Level.TWO_HOSTS: "Two colluding hosts with the base",
}


def level_title(card: Card, level: Level) -> str:
    """Who attacks, as a heading."""
    return _TITLES[level].format(n_pairs=card.basis.n_pairs)


def percent(share: float) -> str:
    """A share for people; 0 % and 100 % only where it is exactly so."""
    if share in (0.0, 1.0):
        return f"{share:.0%}".replace("%", " %")
    number = 100.0 * share
    if number < 0.1:
        return "< 0.1 %"
    return f"{min(number, 99.9):.1f} %" if number < 10.0 or number > 90.0 else f"{number:.0f} %"


def interval(rate: Rate) -> str:
    """The 95 % interval of a share."""
    return f"{percent(rate.low)} to {percent(rate.high)}"


def duration(elapsed_s: float) -> str:
    """Seconds for people."""
    if elapsed_s < 0.1:
        return "< 0.1 s"
    return f"{elapsed_s:.1f} s" if elapsed_s < 10.0 else f"{elapsed_s:,.0f} s"


def megabytes(n_bytes: int) -> str:
    """Bytes for people."""
    return "< 1 MB" if n_bytes < 1_000_000 else f"{n_bytes / 1e6:,.0f} MB"


def tokens_words(outcome: Outcome) -> str:
    """The main figure of an outcome that has a score."""
    score = outcome.score
    if score is None:
        return ""
    if score.kinship is not None:
        found = "descent shows" if score.kinship > 1.0 else "no descent seen"
        return f"{found} ({score.kinship:.2f} of the threshold)"
    return percent(score.tokens.share) if score.tokens else ""


def control_words(control: Control | None) -> str:
    """What the same attack does to what it must break."""
    if control is None:
        return "none"
    if control.score is None:
        return f"failed on {control.rival}: {control.failed}"
    if control.score.kinship is not None:
        return f"{control.score.kinship:.2f} of the threshold on {control.rival}"
    rate = control.score.tokens or control.score.vocabulary
    return f"{percent(rate.share)} on {control.rival}" if rate else "nothing to count"


def basis_rows(card: Card) -> list[tuple[str, str]]:
    """How it was measured: a word and what there is to say."""
    basis = card.basis
    corpora = ", ".join(f"{name} {n:,}" for name, n in basis.corpora.items()) or "none"
    return [
        (
            "secret text",
            f"{basis.n_texts:,} texts, {basis.n_tokens:,} tokens, without begin, end and padding",
        ),
        (
            "guessing",
            f"who always says the commonest token reads {percent(basis.commonest)}",
        ),
        ("public text that attackers have, in tokens", corpora),
        ("known pairs", f"{basis.n_pairs:,}, of the level with pairs; they are not counted"),
        (
            "model",
            f"{basis.vocab_size:,} tokens in the vocabulary, hidden size {basis.hidden:,} under "
            f"the key, {basis.n_layers:,} layers",
        ),
        ("interval", "bootstrap over texts, 1,000 times"),
        ("memory", "growth of the process while the attack ran, a lower bound"),
        (
            "control",
            "the same attack on the public model under the published transform that it must "
            "break: a low number beside a high control is the protection's, not a broken attack's",
        ),
        ("software", ", ".join(f"{name} {version}" for name, version in basis.software.items())),
    ]
