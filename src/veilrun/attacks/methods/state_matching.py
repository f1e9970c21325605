"""State matching: the node sees hidden states of secret prompts, and searches the tokens in order.

The vocabulary's tables are not used: it works as well where the client holds both ends of the
model, and the node begins with hidden states.

1. Record what enters layer `depth` of the sealed model, at each position of the secret texts.
2. The prefix is known so far. For each token that could follow it, run the public model and see
   what would enter the same layer.
3. Compare by what a key leaves alone. Under permutations with signs: the magnitudes, sorted.
   Under orthogonal keys: products with the states before it, and its length.
4. Keep the few best lines, go on. Tokens are tried as the public model expects them, and no
   further once one fits far better than the rest.

Which comparison is used shows on the first positions: there, one token stands out or none does.
Fails under keys that are not orthogonal, on noise that hides the gap between two tokens, and
without the base.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np

from veilrun.attacks.attack import Attack
from veilrun.attacks.holdings import NOBODY, Holdings, Reading, Runs
from veilrun.attacks.levels import Level
from veilrun.attacks.weights import Ids, Table

N_TEXTS: Final = 4
N_POSITIONS: Final = 64
WIDTH: Final = 3
"""Lines kept."""

ACCEPT: Final = 0.01
"""A token that is nearer than this share of the typical distance is taken."""

HOPELESS: Final = 100.0
"""A line this many times as costly as the best (squares, so ten times as far) is dropped."""

_AT_ONCE: Final = 1024
_PROBED: Final = 8


Costs = Callable[[Table, Table, Table], Table]
"""Of the sealed model's states [n + 1, hidden], the base's of n tokens before, and the base's of
options for the last: how badly each option fits."""


def by_products(seen: Table, known: Table, options: Table) -> Table:
    """Lengths and products with the states before, as shares of lengths."""
    lengths = np.linalg.norm(seen, axis=1) * np.linalg.norm(seen[-1])
    lengths[lengths == 0.0] = 1.0
    own = np.square(options).sum(1, keepdims=True)
    found = np.concatenate([options @ known.T, own], axis=1) / lengths
    gaps: Table = np.sqrt(np.square(found - seen @ seen[-1] / lengths).mean(1))
    return gaps


def by_magnitudes(seen: Table, known: Table, options: Table) -> Table:
    """Sorted magnitudes; `known` is not needed."""
    there, here = np.sort(np.abs(seen[-1])), np.sort(np.abs(options), axis=1)
    gaps: Table = np.linalg.norm(here - there, axis=1) / np.linalg.norm(there)
    return gaps


MEASURES: Final[dict[str, Costs]] = {"products": by_products, "magnitudes": by_magnitudes}


@dataclass(frozen=True, eq=False)
class _Line:
    """A reading so far: tokens, the base's states of them, and the sum of squared costs."""

    tokens: Ids
    states: Table
    cost: float


def run(have: Holdings, depth: int = 1) -> Reading:
    """Read the first texts from the states that enter layer `depth` (1 is the second)."""
    sealed, base = have.running
    recorded = sealed.states(have.traffic[:N_TEXTS], depth)
    chosen = [one[:N_POSITIONS].astype(np.float64) for one in recorded]
    width = base.states([np.zeros(1, np.int64)], depth)[0].shape[1]
    read = partial(_read, base, have.vocab_size, depth, width)
    stands_out = {
        name: read(costs, chosen[0][:_PROBED])[1]
        for name, costs in MEASURES.items()
        if costs is by_products or width == chosen[0].shape[1]
    }
    best = MEASURES[min(stands_out, key=lambda name: stands_out[name])]
    texts, tried = [], []
    for place, cipher in enumerate(have.traffic):
        guess = np.full(len(cipher), NOBODY, np.int64)
        if place < len(chosen):
            guess[: len(chosen[place])] = read(best, chosen[place])[0]
        texts.append(guess)
        tried.append(guess != NOBODY)
    return Reading(texts, tried, {"depth": depth, **stands_out})


def _read(
    base: Runs, vocab_size: int, depth: int, width: int, measure: Costs, seen: Table
) -> tuple[Ids, float]:
    """The best line, and how far the best token stood out, as a mean logarithm (less is better)."""
    lines, logs = [_Line(np.empty(0, np.int64), np.empty((0, width)), 0.0)], []
    for place in range(1, len(seen) + 1):
        orders = [_likely(base, vocab_size, line.tokens) for line in lines]
        longer: list[_Line] = []
        best, typical = np.inf, np.inf
        for start in range(0, vocab_size, _AT_ONCE):
            for line, order in zip(lines, orders, strict=True):
                block = order[start : start + _AT_ONCE]
                states = base.next_states(line.tokens, block, depth).astype(np.float64)
                costs = measure(seen[:place], line.states, states)
                typical = min(typical, float(np.median(costs)))
                best = min(best, float(costs.min()))
                longer += [
                    _Line(
                        np.append(line.tokens, block[one]),
                        np.concatenate([line.states, states[one : one + 1]]),
                        line.cost + float(costs[one]) ** 2,
                    )
                    for one in np.argsort(costs, kind="stable")[:WIDTH]
                ]
            if best < ACCEPT * typical:
                break
        longer.sort(key=lambda line: line.cost)
        lines = [line for line in longer[:WIDTH] if line.cost <= HOPELESS * longer[0].cost]
        logs.append(np.log(max(best, 1e-12) / max(typical, 1e-12)))
    return lines[0].tokens, float(np.mean(logs))


def _likely(base: Runs, vocab_size: int, tokens: Ids) -> Ids:
    """All ids, those first that the public model expects after `tokens`."""
    if not len(tokens) or vocab_size <= _AT_ONCE:
        return np.arange(vocab_size)
    order: Ids = np.argsort(-base.logits([tokens])[0][-1], kind="stable")
    return order


ATTACK: Final = Attack(
    name="state-matching",
    title="search by hidden states",
    levels=(Level.BASE,),
    material=("runs", "traffic"),
    knows="states of the secret texts inside the sealed model, and the public model; no tables",
    recovers="the texts, token by token",
    breaks="permutation and orthogonal",
    stops="noise above the gap between tokens; a base that is not public; sharding",
    source="'Hidden No More', arXiv 2505.18332 (ICML 2025); products for orthogonal keys are own",
    cost="T V forward passes of one token over a cached prefix, times the lines kept (at worst)",
    run=run,
)
