"""Choosing the next token of every answer in a batch, each by its own parameters.

The order of steps is vLLM's, so that one request means the same on both engines:

1. report log-probabilities of the model's own distribution, before anything below;
2. add the logit bias; forbid the end ids while the answer is shorter than `min_tokens`;
3. repetition penalty (prompt and answer), then frequency and presence penalty (answer);
4. temperature 0: the largest score. Otherwise temperature, then `min_p`, `top_k`, `top_p`, and
   one draw from what is left.

A draw is one uniform number of the answer's own generator, looked up in the cumulative
distribution: the number of rows beside it never changes what an answer draws.

Invariant: `sample` returns one id per row, each within the vocabulary, whatever the scores.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from veilrun.wire.generate import PositionLogprobs, SamplingParams, TokenLogprob

GREEDY_BELOW = 1e-5
"""Temperatures below this are greedy: dividing by them would overflow (vLLM's threshold)."""

LOWEST_LOGPROB = -9999.0
"""Reported for a token the model gives no probability to: JSON has no infinity."""

_N_CANDIDATES = 1024
"""A nucleus is first looked for among this many best tokens: sorting 150,000 costs far more."""


def needs_sampler(params: SamplingParams) -> bool:
    """Whether an answer needs anything but the largest score at every step."""
    return bool(
        params.temperature >= GREEDY_BELOW
        or params.logprobs is not None
        or params.logit_bias
        or params.min_tokens
        or _has_penalties(params)
    )


class AnswerState:
    """One answer's parameters, random numbers and history while it grows.

    Used by the engine's thread alone, except `logprobs`: it only ever grows, and an entry is
    in place before the engine reports its token, so another thread may read what it knows of.

    index: which of the request's `n` answers; it is added to the seed.
    end_ids: the ids that end this answer.
    """

    def __init__(
        self,
        params: SamplingParams,
        index: int,
        prompt_ids: Sequence[int],
        end_ids: Sequence[int],
    ) -> None:
        self.params = params
        self.logprobs: list[PositionLogprobs] = []
        self.n_tokens = 0
        self._prompt_ids = tuple(prompt_ids)
        self._end_ids = tuple(end_ids)
        # The generator's state is 64 bits of seed: two's complement gives negative seeds theirs.
        seed = None if params.seed is None else (params.seed + index) % 2**64
        self._random = np.random.default_rng(seed)
        self._bias: tuple[Tensor, Tensor] | None = None
        self._forbidden: Tensor | None = None
        self._counts: Tensor | None = None  # [V] float32: how often the answer has each id
        self._seen: Tensor | None = None  # [V] bool: ids of prompt and answer

    @property
    def is_greedy(self) -> bool:
        """Whether the largest adjusted score is the answer's next token."""
        return self.params.temperature < GREEDY_BELOW

    def uniform(self) -> float:
        """The answer's next random number, from 0 to 1."""
        return float(self._random.random())

    def adjust(self, row: Tensor) -> None:
        """Apply steps 2 and 3 to `row` ([V] float32) in place."""
        params = self.params
        if params.logit_bias:
            if self._bias is None:
                ids = torch.tensor(list(params.logit_bias), device=row.device)
                added = torch.tensor(list(params.logit_bias.values()), device=row.device)
                self._bias = ids, added.to(row.dtype)
            row.index_add_(0, *self._bias)
        if self.n_tokens < params.min_tokens and self._end_ids:
            if self._forbidden is None:
                self._forbidden = torch.tensor(self._end_ids, device=row.device)
            row.index_fill_(0, self._forbidden, -math.inf)
        if _has_penalties(params):
            counts, seen = self._history(row)
            p = params.repetition_penalty
            row.copy_(torch.where(seen, torch.where(row > 0, row / p, row * p), row))
            row.sub_(params.frequency_penalty * counts + params.presence_penalty * (counts > 0))

    def append(self, token_id: int) -> None:
        """Take note of the chosen token."""
        self.n_tokens += 1
        if self._counts is not None and self._seen is not None:
            self._counts[token_id] += 1
            self._seen[token_id] = True

    def _history(self, row: Tensor) -> tuple[Tensor, Tensor]:
        if self._counts is None or self._seen is None:
            self._counts = torch.zeros_like(row)
            self._seen = torch.zeros_like(row, dtype=torch.bool)
            self._seen[torch.tensor(self._prompt_ids, dtype=torch.long, device=row.device)] = True
        return self._counts, self._seen


def sample(logits: Tensor, answers: Sequence[AnswerState]) -> list[int]:
    """The next token of every answer, noted in each; `logits` is [R, V] float32, one row each."""
    scores = logits.clone()
    for row, answer in zip(scores, answers, strict=True):
        answer.adjust(row)
    tokens = scores.argmax(-1)
    whole = [i for i, one in enumerate(answers) if not one.is_greedy and not _truncates(one.params)]
    cut = [i for i, one in enumerate(answers) if not one.is_greedy and _truncates(one.params)]
    for rows in filter(None, (whole, cut)):
        tokens[rows] = _draw(scores[rows], [answers[i] for i in rows], cut=rows is cut)
    _report(logits, tokens, answers)
    ids: list[int] = tokens.tolist()
    for answer, token_id in zip(answers, ids, strict=True):
        answer.append(token_id)
    return ids


def _draw(scores: Tensor, answers: Sequence[AnswerState], *, cut: bool) -> Tensor:
    """Step 4 for rows that draw: [R, V] float32 -> [R] ids. `cut`: some use top_k or top_p."""

    def column(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64, device=scores.device).unsqueeze(1)

    params = [one.params for one in answers]
    scores = scores / column([one.temperature for one in params]).float()
    if any(one.min_p for one in params):
        floor = column([math.log(one.min_p) if one.min_p else -math.inf for one in params])
        lowest = scores.amax(-1, keepdim=True) + floor.float()
        scores = scores.masked_fill(scores < lowest, -math.inf)
    ids = None
    if cut:
        top_k = column([one.top_k or scores.shape[1] for one in params])
        scores, ids = _truncate(scores, top_k, column([one.top_p for one in params]))
    cumulative = scores.softmax(-1, dtype=torch.float64).cumsum(-1)
    target = column([one.uniform() for one in answers]) * cumulative[:, -1:]
    # `right`: an id without probability is never hit. The clamp is for rows that are not numbers.
    place = torch.searchsorted(cumulative, target, right=True).clamp_(max=scores.shape[1] - 1)
    return (place if ids is None else ids.gather(1, place)).squeeze(1)


def _truncate(scores: Tensor, top_k: Tensor, top_p: Tensor) -> tuple[Tensor, Tensor]:
    """Keep the `top_k` best, then the fewest of them that hold `top_p` of their probability.

    Scores are [R, V]; `top_k` and `top_p` are [R, 1]. Returns scores and ids, both [R, W], best
    first; what is cut is -inf. W is V only if some row's nucleus is wider than the candidates.
    """
    n_ids = scores.shape[1]
    width = min(n_ids, _N_CANDIDATES)
    log_total = scores.logsumexp(-1, keepdim=True)
    values, ids = scores.topk(width)
    mass = (values - log_total).exp().sum(-1, keepdim=True)
    if not bool(((top_k <= width) | ((top_k >= n_ids) & (mass >= top_p))).all()):
        width = n_ids
        values, ids = scores.sort(-1, descending=True)
    rank = torch.arange(width, device=scores.device)
    values = values.masked_fill(rank >= top_k, -math.inf)
    log_total = torch.where(top_k <= width, values.logsumexp(-1, keepdim=True), log_total)
    share = (values - log_total).exp()
    before = share.cumsum(-1) - share  # of each token: what the better ones hold already
    beyond = (before >= top_p) & (top_p < 1) & (rank > 0)
    return values.masked_fill(beyond, -math.inf), ids


def _report(logits: Tensor, tokens: Tensor, answers: Sequence[AnswerState]) -> None:
    """Step 1, for the answers that ask for it; `logits` [R, V] are still the model's own."""
    asking = [one for one in answers if one.params.logprobs is not None]
    if not asking:
        return
    rows = [i for i, one in enumerate(answers) if one.params.logprobs is not None]
    logprobs = logits[rows].log_softmax(-1)
    chosen = tokens[rows].unsqueeze(1)
    chosen_logprobs = logprobs.gather(1, chosen)
    ranks = (logprobs > chosen_logprobs).sum(-1) + 1
    n_top = min(max(one.params.logprobs or 0 for one in asking), logprobs.shape[1])
    top_logprobs, top_ids = logprobs.topk(n_top)
    table = zip(
        asking,
        chosen.squeeze(1).tolist(),
        _finite(chosen_logprobs.squeeze(1)).tolist(),
        ranks.tolist(),
        top_ids.tolist(),
        _finite(top_logprobs).tolist(),
        strict=True,
    )
    for answer, token_id, logprob, rank, ids, values in table:
        best = list(zip(ids, values, range(1, n_top + 1), strict=True))[: answer.params.logprobs]
        answer.logprobs.append(
            PositionLogprobs(
                TokenLogprob(token_id, logprob, rank), tuple(TokenLogprob(*one) for one in best)
            )
        )


def _finite(logprobs: Tensor) -> Tensor:
    return logprobs.nan_to_num(nan=LOWEST_LOGPROB, neginf=LOWEST_LOGPROB).clamp_(LOWEST_LOGPROB, 0)


def _has_penalties(params: SamplingParams) -> bool:
    return bool(
        params.presence_penalty or params.frequency_penalty or params.repetition_penalty != 1.0
    )


def _truncates(params: SamplingParams) -> bool:
    return bool(params.top_k or params.top_p < 1.0)
