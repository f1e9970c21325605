"""What one attacker holds, and what an attack makes of it.

Invariant: nothing in `Holdings` comes from the key. Fields that a level does not have are None
or empty, so an attack cannot use by accident what its attacker lacks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from veilrun.attacks.levels import Level
from veilrun.attacks.weights import Ids, Weights

NOBODY = -1
"""A guess that is none."""


class Runs(Protocol):
    """A model that runs."""

    def logits(self, ids: Sequence[Ids]) -> list[npt.NDArray[np.float32]]:
        """Of each text: [positions, vocabulary]."""

    def states(self, ids: Sequence[Ids], depth: int) -> list[npt.NDArray[np.float32]]:
        """Of each text: [positions, hidden], the residual stream that enters layer `depth`."""

    def next_states(self, prefix: Ids, candidates: Ids, depth: int) -> npt.NDArray[np.float32]:
        """[candidates, hidden]: what enters layer `depth` where each candidate follows `prefix`."""


@dataclass(frozen=True, eq=False)
class Model:
    """A checkpoint in an attacker's hands. runs: None where only tables are known."""

    weights: Weights
    runs: Runs | None = None


@dataclass(frozen=True, eq=False)
class Pairs:
    """Known tokens: cipher[i] is the id of plain[i]."""

    cipher: Ids
    plain: Ids


@dataclass(frozen=True, eq=False)
class Holdings:
    """Everything one attacker has.

    vocab_size: of the model. traffic: texts as cipher ids, as the node sees them.
    corpora: public text as plain ids, by how near it is to the traffic: `foreign` (another
        subject and style), `domain` (the same kind of text), `same` (the very same source).
    sealed: the encrypted model. base: the public one. copies: further encrypted copies.
    pairs: known tokens.
    """

    level: Level
    vocab_size: int
    traffic: Sequence[Ids] = ()
    corpora: Mapping[str, Sequence[Ids]] = field(default_factory=dict)
    sealed: Model | None = None
    base: Model | None = None
    copies: Sequence[Model] = ()
    pairs: Pairs | None = None

    @property
    def public_text(self) -> Sequence[Ids]:
        """The corpus nearest to the traffic. Raises LookupError if there is none."""
        for name in ("same", "domain", "foreign"):
            if self.corpora.get(name):
                return self.corpora[name]
        raise LookupError("this attacker has no public text")

    @property
    def tables(self) -> tuple[Weights, Weights]:
        """The encrypted and the public model's tables. Raises LookupError if one is missing."""
        if self.sealed is None or self.base is None:
            raise LookupError("this attacker lacks one of the two models")
        return self.sealed.weights, self.base.weights

    @property
    def running(self) -> tuple[Runs, Runs]:
        """The two models, to run. Raises LookupError if one is missing or cannot run."""
        if self.sealed is None or self.base is None:
            raise LookupError("this attacker lacks one of the two models")
        if self.sealed.runs is None or self.base.runs is None:
            raise LookupError("of this subject only tables are known")
        return self.sealed.runs, self.base.runs


@dataclass(frozen=True, eq=False)
class Substitution:
    """Guesses of the vocabulary's permutation.

    candidates: [vocabulary, k] plain ids for each cipher id, best first; NOBODY where none.
    notes: figures of the attack itself, for the card (rounds, kept share, penalty).
    """

    candidates: Ids
    notes: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Reading:
    """Guesses of the texts themselves: plain ids for each text of `traffic`, NOBODY where none.

    tried: [positions] of each text; True where the attack was tried (others do not count).
    """

    texts: Sequence[Ids]
    tried: Sequence[npt.NDArray[np.bool_]]
    notes: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Kinship:
    """Whether the encrypted model descends from the base.

    similarity: of the two. threshold: above it the attack says yes.
    """

    similarity: float
    threshold: float
    notes: Mapping[str, float] = field(default_factory=dict)


Finding = Substitution | Reading | Kinship
