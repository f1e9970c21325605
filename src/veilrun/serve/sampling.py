"""Choosing the next token of one answer on the trusted side, in plain ids.

Steps and meanings are those of the node's own sampler, so that one request means the same:

1. report log-probabilities of the model's own distribution, before anything below;
2. add the logit bias; forbid the end ids while the answer is shorter than `min_tokens`;
3. repetition penalty (prompt and answer), then frequency and presence penalty (answer);
4. temperature 0: the largest score. Otherwise temperature, then `min_p`, `top_k`, `top_p`, and
   one draw from what is left.

Invariant: `choose` returns an id of the vocabulary, whatever the scores.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from veilrun.serve.ask import Ask, Likelihood, Position

GREEDY_BELOW: Final = 1e-5
"""Temperatures below this are greedy: dividing by them would overflow."""

LOWEST_LOGPROB: Final = -9999.0
"""Reported for a token the model gives no probability to: JSON has no infinity."""

Scores = npt.NDArray[np.floating[Any]]


class Sampler:
    """One answer's parameters, random numbers and history while it grows.

    index: which of the `n` answers; it is added to the seed. end_ids: the ids that end it.
    """

    def __init__(self, ask: Ask, index: int, end_ids: tuple[int, ...]) -> None:
        self._ask, self._end_ids = ask, list(end_ids)
        seed = ask.sampling.seed
        self._random = np.random.default_rng(None if seed is None else (seed + index) % 2**64)
        self._answer: list[int] = []

    def choose(self, scores: Scores) -> tuple[int, Position | None]:
        """The next token after `scores` [vocabulary], and its report where one was asked for."""
        sampling = self._ask.sampling
        own = scores.astype(np.float64)
        adjusted = self._adjusted(own.copy())
        if sampling.temperature < GREEDY_BELOW:
            token = int(adjusted.argmax())
        else:
            token = self._drawn(adjusted / sampling.temperature)
        self._answer.append(token)
        return token, _report(own, token, sampling.logprobs)

    def _adjusted(self, scores: Scores) -> Scores:
        sampling = self._ask.sampling
        for token, value in sampling.logit_bias.items():
            scores[token] += value
        if len(self._answer) < sampling.min_tokens:
            scores[self._end_ids] = -math.inf
        if sampling.repetition_penalty != 1.0:
            seen = list({*self._ask.prompt_ids, *self._answer})
            p, old = sampling.repetition_penalty, scores[seen]
            scores[seen] = np.where(old > 0, old / p, old * p)
        if self._answer and (sampling.frequency_penalty or sampling.presence_penalty):
            ids, counts = np.unique(self._answer, return_counts=True)
            scores[ids] -= sampling.frequency_penalty * counts + sampling.presence_penalty
        return scores

    def _drawn(self, scores: Scores) -> int:
        sampling = self._ask.sampling
        if sampling.min_p:
            scores[scores < scores.max() + math.log(sampling.min_p)] = -math.inf
        order = np.argsort(-scores, kind="stable")[: sampling.top_k or len(scores)]
        weights = np.exp(scores[order] - scores[order[0]])
        if sampling.top_p < 1.0:
            share = weights / weights.sum()
            beyond = share.cumsum() - share >= sampling.top_p
            beyond[0] = False
            weights[beyond] = 0.0
        cumulative = weights.cumsum()
        target = self._random.random() * cumulative[-1]
        place = int(np.searchsorted(cumulative, target, side="right"))
        return int(order[min(place, len(order) - 1)])


def _report(scores: Scores, token: int, n_top: int | None) -> Position | None:
    if n_top is None:
        return None
    shifted = scores - scores.max()
    logprobs = shifted - math.log(np.exp(shifted).sum())
    top = np.argsort(-logprobs, kind="stable")[:n_top]

    def likelihood(one: int) -> Likelihood:
        return Likelihood(one, min(0.0, max(float(logprobs[one]), LOWEST_LOGPROB)))

    return Position(likelihood(token), tuple(likelihood(int(one)) for one in top))
