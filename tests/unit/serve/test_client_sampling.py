"""The client's sampler means what the node's means: same choices, same reports, same shares."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import torch

from veilrun.node.sampling import AnswerState, sample
from veilrun.serve.ask import Ask, Sampling
from veilrun.serve.sampling import Sampler
from veilrun.wire.generate import SamplingParams

VOCAB, END = 24, (2, 5)
PROMPT = (1, 7, 7, 9)


def both(length: int, **options: Any) -> tuple[list[Any], list[Any]]:
    """What the client's and the node's sampler choose and report on the same random scores."""
    sampling = Sampling(**options)
    mine = Sampler(Ask(PROMPT, length, sampling), 0, END)
    given = {name: value for name, value in asdict(sampling).items()}
    theirs = AnswerState(SamplingParams(max_tokens=length, **given), 0, PROMPT, END)
    random = np.random.default_rng(3)
    chosen, expected = [], []
    for _ in range(length):
        scores = random.normal(0, 2, VOCAB).astype(np.float32)
        chosen.append(mine.choose(scores))
        (token,) = sample(torch.from_numpy(scores)[None], [theirs])
        expected.append((token, theirs.logprobs[-1] if theirs.logprobs else None))
    return chosen, expected


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"repetition_penalty": 1.7},
        {"presence_penalty": 1.5, "frequency_penalty": 0.7},
        {"presence_penalty": -1.5, "repetition_penalty": 0.6, "min_tokens": 9},
        {"logit_bias": {3: 4.0, 11: -100.0}, "min_tokens": 40},
    ],
)
def test_greedy_choices_are_the_nodes(options: dict[str, Any]):
    chosen, expected = both(40, temperature=0.0, **options)
    assert [one for one, _ in chosen] == [one for one, _ in expected]


def test_reports_are_the_nodes():
    chosen, expected = both(12, temperature=0.0, logprobs=4, logit_bias={3: 9.0})
    for (token, mine), (_, theirs) in zip(chosen, expected, strict=True):
        assert mine is not None
        assert mine.chosen.token_id == token == theirs.chosen.token_id
        assert mine.chosen.logprob == pytest.approx(theirs.chosen.logprob, abs=1e-5)
        assert [one.token_id for one in mine.top] == [one.token_id for one in theirs.top]
        assert [one.logprob for one in mine.top] == pytest.approx(
            [one.logprob for one in theirs.top], abs=1e-5
        )


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.7},
        {"temperature": 1.0, "top_k": 4},
        {"temperature": 1.0, "top_p": 0.7},
        {"temperature": 1.5, "min_p": 0.2},
        {"temperature": 1.3, "top_p": 0.8, "top_k": 6, "min_p": 0.05},
        {"temperature": 1.0, "top_p": 1e-9},
    ],
)
def test_draws_have_the_nodes_shares(options: dict[str, Any]):
    scores = np.random.default_rng(5).normal(0, 1.5, VOCAB).astype(np.float32)
    n = 1500
    mine: Counter[int] = Counter()
    answers = []
    for seed in range(n):
        sampling = Sampling(seed=seed, **options)
        mine[Sampler(Ask(PROMPT, 1, sampling), 0, END).choose(scores)[0]] += 1
        answers.append(AnswerState(SamplingParams(seed=seed, **options), 0, PROMPT, END))
    theirs = Counter(sample(torch.from_numpy(scores).repeat(n, 1), answers))
    for token in range(VOCAB):
        # Five standard deviations of the difference of two shares.
        share = max(theirs[token], mine[token]) / n
        assert abs(mine[token] - theirs[token]) / n <= 5 * (2 * share / n) ** 0.5
    if len(options) > 1:
        rare = {one for one, count in (mine | theirs).items() if count > 20}
        assert rare <= mine.keys() & theirs.keys()


def test_the_same_seed_says_the_same_and_answers_differ():
    scores = np.zeros(VOCAB, np.float32)
    ask = Ask(PROMPT, 8, Sampling(seed=-4))

    def said(index: int) -> list[int]:
        sampler = Sampler(ask, index, END)
        return [sampler.choose(scores)[0] for _ in range(8)]

    assert said(0) == said(0) != said(1)


def test_scores_that_are_no_numbers_still_give_an_id():
    for value in (np.nan, np.inf, -np.inf):
        scores = np.full(VOCAB, value, np.float32)
        for temperature in (0.0, 1.0):
            with np.errstate(all="ignore"):
                ask = Ask(PROMPT, 1, Sampling(temperature=temperature, top_p=0.5, min_p=0.1))
                token, _ = Sampler(ask, 0, END).choose(scores)
            assert 0 <= token < VOCAB
