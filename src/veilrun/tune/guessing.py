"""How well prompt lookup would guess an answer: the feature behind `Workload.repetition`.

Stock prompt lookup takes the last n-gram (of two ids, else of one), finds where it stood first in
prompt and answer so far, and proposes what followed there. Here the same is played on finished
answers, without a model: cheap enough to watch real traffic with.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

N_PROPOSED: Final = 8
"""Ids proposed at a time; `node.static_engine` asks for as many."""

_NGRAM: Final = 2


def share_guessed(prompt: Sequence[int], answer: Sequence[int]) -> float:
    """The share of the answer's ids that come free with a checked guess, from 0 to 1."""
    if not answer:
        return 0.0
    ids = [*prompt, *answer]
    first: dict[tuple[int, ...], int] = {}  # n-gram -> where what follows it begins

    def note(end: int) -> None:
        for n in range(1, _NGRAM + 1):
            if end >= n:
                first.setdefault(tuple(ids[end - n : end]), end)

    for end in range(1, len(prompt)):
        note(end)
    at, n_guessed, n_noted = len(prompt), 0, max(0, len(prompt) - 1)
    while at < len(ids):
        while n_noted + 1 < at:  # the n-gram that ends here has no continuation yet
            n_noted += 1
            note(n_noted)
        n_right = _n_right(ids, at, first)
        n_guessed += n_right
        at += n_right + 1  # one more id comes with every check
    return n_guessed / len(answer)


def _n_right(ids: Sequence[int], at: int, first: dict[tuple[int, ...], int]) -> int:
    """How many ids of the guess before `at` hold; the last id of an answer is never a guess."""
    for n in range(_NGRAM, 0, -1):
        start = first.get(tuple(ids[max(0, at - n) : at]))
        if start is not None and at >= n:
            n_right = 0
            while (
                n_right < N_PROPOSED
                and at + n_right < len(ids) - 1
                and start + n_right < at
                and ids[start + n_right] == ids[at + n_right]
            ):
                n_right += 1
            return n_right
    return 0
