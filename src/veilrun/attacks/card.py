"""The security card: what every attack on one encrypted model recovered. Values only.

Invariant: a card holds numbers and names, and nothing of the secret: no text, no token, no part
of the key.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from veilrun.attacks.levels import Level
from veilrun.attacks.metrics import Rate, Score


@dataclass(frozen=True, slots=True)
class Facts:
    """What a reader must know of an attack; the fields are those of `attack.Attack`."""

    name: str
    title: str
    knows: str
    recovers: str
    stops: str
    source: str
    cost: str


@dataclass(frozen=True, slots=True)
class Control:
    """The same attack on the public model under the transform that it must break.

    Without it nobody could tell a low number from a broken attack.
    rival: the transform, a name in `rivals.RIVALS`. score: None if the attack failed.
    """

    rival: str
    score: Score | None
    failed: str | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """One attack at one level.

    score: None if the attack failed; then `failed` says why. notes: figures of the attack
    itself; None where one is not a number. elapsed_s: by the clock; cpu_s: of all cores.
    extra_bytes: how far resident memory grew. control: None where there is no such test.
    """

    attack: str
    level: Level
    score: Score | None
    failed: str | None
    notes: Mapping[str, float | None]
    elapsed_s: float
    cpu_s: float
    extra_bytes: int
    control: Control | None

    @property
    def rate(self) -> Rate | None:
        """The share of tokens read, or of ids where there is no text; None if neither."""
        return None if self.score is None else rate_of(self.score)


@dataclass(frozen=True, slots=True)
class Untried:
    """An attack that was not tried, and why."""

    attack: str
    reason: str


@dataclass(frozen=True, slots=True)
class Basis:
    """On what it was measured.

    n_texts, n_tokens: of secret text; tokens without begin, end and padding. commonest: the
    share of the commonest token: who always says that reads so much. corpora: tokens of each
    public text that attackers have. n_pairs: known pairs. software: versions, by name.
    """

    vocab_size: int
    hidden: int
    n_layers: int
    n_texts: int
    n_tokens: int
    commonest: float
    n_pairs: int
    corpora: Mapping[str, int]
    software: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Card:
    """model: its name. mode: how it is protected. levels: the attackers that there are.

    outcomes: in the order of the catalogue, then of the levels.
    """

    model: str
    mode: str
    levels: tuple[Level, ...]
    attacks: tuple[Facts, ...]
    outcomes: tuple[Outcome, ...]
    untried: tuple[Untried, ...]
    basis: Basis

    def facts(self, attack: str) -> Facts:
        """What there is to know of an attack of this card."""
        return next(one for one in self.attacks if one.name == attack)

    def strongest(self, level: Level) -> Outcome | None:
        """The attack that reads most, of all that an attacker of `level` can make."""
        able = [one for one in self.outcomes if one.level in level.includes and one.rate]
        return max(able, key=_share, default=None)


def rate_of(score: Score) -> Rate | None:
    """The share of tokens, or of ids where there is no text; None where nothing was counted."""
    rate = score.tokens or score.vocabulary
    return rate if rate is not None and rate.n > 0 else None


def _share(outcome: Outcome) -> float:
    rate = outcome.rate
    return -1.0 if rate is None else rate.share
