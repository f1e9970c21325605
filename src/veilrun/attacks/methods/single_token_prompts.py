"""Single-token prompts: two models that compute one function are matched through what they answer.

No table is read and no key is undone: the attacker only runs both models. An exact key leaves
the logits as they were, in the order of the secret vocabulary.

1. Ask both models every prompt of one token. What is compared are the sorted logits, centred:
   the order of the vocabulary is no longer in them.
2. The nearest answer of the base is the token. The gap to the second nearest says how sure.
3. The surest tokens are anchors: their columns of logits stand for the same words in both
   models, and are compared as they are. Match again, with twice as many anchors.

Prompts `[c, c]` would tell nothing more: at one token, repeated, attention has one value to read,
and rotary models answer as they did to `[c]`.

A vocabulary above `ALL_IDS` is asked for the ids of the recorded traffic alone; the base is asked
for all of its own. Fails where the logits are noisy from the first match on, or not seen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from veilrun.attacks.attack import Attack
from veilrun.attacks.holdings import NOBODY, Holdings, Runs, Substitution
from veilrun.attacks.levels import Level
from veilrun.attacks.matching import nearest
from veilrun.attacks.weights import Ids, Table

ALL_IDS: Final = 4096
FIRST_ANCHORS: Final = 16
ROUNDS: Final = 6
_QUANTILES: Final = 256
_AT_ONCE: Final = 64
"""Prompts whose logits are held together."""


def run(have: Holdings) -> Substitution:
    """Match single-token prompts by the answers of both models."""
    sealed, base = have.running
    asked, options = _asked(have), np.arange(have.vocab_size)
    found, gaps = _match(_shape(sealed, asked), _shape(base, options))
    first, rounds = found, 0
    while rounds < ROUNDS:
        anchors = _surest(found[:, 0], gaps)[: FIRST_ANCHORS << rounds]
        again, gaps = _match(
            _columns(sealed, asked, asked[anchors]), _columns(base, options, found[anchors, 0])
        )
        settled = bool((again[:, 0] == found[:, 0]).all())
        found, rounds = again, rounds + 1
        if settled:
            break
    candidates = np.full((have.vocab_size, found.shape[1]), NOBODY, np.int64)
    candidates[asked] = found
    moved = float((first[:, 0] != found[:, 0]).mean())
    return Substitution(candidates, {"asked": len(asked), "rounds": rounds, "moved": moved})


def _asked(have: Holdings) -> Ids:
    """The cipher ids to find."""
    if have.vocab_size <= ALL_IDS:
        return np.arange(have.vocab_size)
    return np.unique(np.concatenate([*have.traffic, np.empty(0, np.int64)]))


def _match(rows: Table, among: Table) -> tuple[Ids, Table]:
    """Ten candidates of each row, and how much nearer the first is than the second (0: at it)."""
    spread = among.std(0)
    spread[spread == 0.0] = 1.0
    found, distances = nearest(rows / spread, among / spread, k=10)
    return found, distances[:, 0] / np.maximum(distances[:, 1], np.finfo(float).tiny)


def _surest(found: Ids, gaps: Table) -> Ids:
    """Places of the anchors: the surest half, each token once."""
    order = np.argsort(gaps, kind="stable")[: max(1, len(gaps) // 2)]
    _, firsts = np.unique(found[order], return_index=True)
    places: Ids = order[np.sort(firsts)]
    return places


def _shape(runs: Runs, prompts: Ids) -> Table:
    """[prompts, 256]: each answer's logits in order."""

    def quantiles(logits: Table) -> Table:
        places = np.linspace(0, logits.shape[1] - 1, _QUANTILES).round().astype(int)
        ordered: Table = np.sort(logits, axis=1)[:, places]
        return ordered

    return _answers(runs, prompts, quantiles)


def _columns(runs: Runs, prompts: Ids, columns: Ids) -> Table:
    """[prompts, columns]: each answer's logits of some ids."""
    return _answers(runs, prompts, lambda logits: logits[:, columns])


def _answers(runs: Runs, prompts: Ids, keep: Callable[[Table], Table]) -> Table:
    """What `keep` keeps of the centred logits after each prompt of one token."""
    parts = []
    for start in range(0, len(prompts), _AT_ONCE):
        asked = [one[None] for one in prompts[start : start + _AT_ONCE]]
        logits = np.concatenate(runs.logits(asked)).astype(np.float64)
        parts.append(keep(logits - logits.mean(1, keepdims=True)))
    return np.concatenate(parts)


ATTACK: Final = Attack(
    name="single-token-prompts",
    title="single-token prompts",
    levels=(Level.BASE, Level.FINE_TUNE),
    material=("runs", "head"),
    knows="the answers of both models to prompts of one token; no weights",
    recovers="the vocabulary's permutation",
    breaks="every exact key",
    stops="logits that the host does not see or that noise drowns; a base that is not public",
    source="own; black-box matching of two functions",
    cost=(
        "one forward pass per id on each model and round (above 4,096 ids: of the sealed model "
        "for ids in traffic only), V^2 log V to sort, V^2 to compare"
    ),
    run=run,
)
