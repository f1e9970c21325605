"""A test subject: an encrypted model, the truth about it, and what each attacker has of it.

Only the trusted side can make one: the truth comes from the key. `holdings` hands out what one
level has, and nothing of the truth.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from veilrun.attacks.attack import Attack, Material
from veilrun.attacks.holdings import Holdings, Model, Pairs
from veilrun.attacks.levels import Level
from veilrun.attacks.weights import Ids

N_PAIRS = 64
"""Known pairs at level `host+base+pairs`, unless said otherwise: a page of text or less."""


@dataclass(frozen=True, eq=False)
class Copy:
    """One encrypted model. order[c] is the plain id whose cipher id is c: the secret."""

    model: Model
    order: Ids

    def encode(self, text: Ids) -> Ids:
        """Plain ids as cipher ids."""
        cipher: Ids = np.argsort(self.order)[text]
        return cipher


@dataclass(frozen=True, eq=False)
class Subject:
    """name: of the model. mode: how it is protected, in the words of cards.

    fine_tuned: the base is not the model itself but what it was fine-tuned from.
    secret: texts as plain ids, which attackers want. corpora: as in `Holdings`.
    special: plain ids that stand for no text (begin, end, padding); scored apart.
    words: plain ids as text.
    """

    name: str
    mode: str
    sealed: Copy
    base: Model
    words: Callable[[Sequence[int]], str]
    secret: Sequence[Ids] = ()
    corpora: Mapping[str, Sequence[Ids]] = field(default_factory=dict)
    fine_tuned: bool = False
    copies: Sequence[Copy] = ()
    special: frozenset[int] = frozenset()

    @property
    def vocab_size(self) -> int:
        """Rows of the vocabulary."""
        return len(self.sealed.order)

    @property
    def levels(self) -> frozenset[Level]:
        """The attackers that there are for this subject."""
        levels = {Level.WIRE, Level.HOST}
        if self.fine_tuned:
            return frozenset(levels | {Level.FINE_TUNE})
        levels |= {Level.BASE, Level.PAIRS}
        return frozenset(levels | ({Level.TWO_HOSTS} if self.copies else set()))

    def lacks(self, attack: Attack) -> str | None:
        """Why `attack` cannot be tried on this subject; None where it can."""
        weights = self.sealed.model.weights
        have: Mapping[Material, tuple[bool, str]] = {
            "traffic": (bool(self.secret), "there is no text"),
            "tables": (True, ""),
            "head": (weights.head is not None, "the model has no head"),
            "runs": (
                self.sealed.model.runs is not None and self.base.runs is not None,
                "only tables of the model are known",
            ),
            "copies": (bool(self.copies), "there is one copy only"),
        }
        reasons = [have[one][1] for one in attack.material if not have[one][0]]
        if not self.levels & set(attack.levels):
            reasons.append("no attacker at its levels")
        return "; ".join(reasons) or None

    def holdings(self, level: Level, n_pairs: int = N_PAIRS) -> Holdings:
        """What the attacker at `level` has."""
        hosts = level is not Level.WIRE
        has_base = level not in (Level.WIRE, Level.HOST)
        return Holdings(
            level=level,
            vocab_size=self.vocab_size,
            traffic=tuple(self.sealed.encode(text) for text in self.secret),
            corpora=self.corpora,
            sealed=self.sealed.model if hosts else None,
            base=self.base if has_base else None,
            copies=tuple(one.model for one in self.copies) if level is Level.TWO_HOSTS else (),
            pairs=self.pairs(n_pairs) if level is Level.PAIRS else None,
        )

    def pairs(self, n: int) -> Pairs:
        """The first n different tokens of a text that the attacker got to be encrypted."""
        source = self.corpora.get("same") or self.secret
        seen = list(dict.fromkeys(int(token) for text in source for token in text))
        plain = np.array([one for one in seen if one not in self.special][:n], np.int64)
        return Pairs(cipher=self.sealed.encode(plain), plain=plain)
