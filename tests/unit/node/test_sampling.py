"""Sampling against plain formulas: what each parameter does to a row, and that rows stay apart."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from veilrun.node import sampling
from veilrun.node.sampling import AnswerState, sample
from veilrun.wire.generate import SamplingParams

GREEDY = SamplingParams(temperature=0.0)
PROBABILITIES = [0.4, 0.3, 0.15, 0.1, 0.05]


def answer(
    params: SamplingParams, prompt: tuple[int, ...] = (), end: tuple[int, ...] = (), index: int = 0
):
    return AnswerState(params, index, prompt, end)


def logits_of(probabilities: list[float], rows: int = 1) -> torch.Tensor:
    return torch.tensor(probabilities).log().repeat(rows, 1)


def frequencies(params: SamplingParams, n: int = 4000, probabilities: list[float] = PROBABILITIES):
    """How often each id is drawn by `n` answers with seeds 0 to n - 1."""
    answers = [answer(replace(params, seed=seed)) for seed in range(n)]
    ids = sample(logits_of(probabilities, n), answers)
    return torch.bincount(torch.tensor(ids), minlength=len(probabilities)) / n


def assert_distribution(measured: torch.Tensor, expected: list[float], n: int = 4000) -> None:
    """Each frequency within five standard deviations of its binomial mean; zeros exactly zero."""
    for got, p in zip(measured.tolist(), expected, strict=True):
        assert abs(got - p) <= 5 * math.sqrt(p * (1 - p) / n)


def test_greedy_takes_the_largest_score() -> None:
    logits = torch.randn(7, 50, generator=torch.Generator().manual_seed(1))
    assert sample(logits, [answer(GREEDY) for _ in range(7)]) == logits.argmax(-1).tolist()


def test_plain_sampling_follows_the_distribution() -> None:
    assert_distribution(frequencies(SamplingParams()), PROBABILITIES)


def test_temperature_sharpens_the_distribution() -> None:
    squared = [p**2 for p in PROBABILITIES]
    expected = [p / sum(squared) for p in squared]
    assert_distribution(frequencies(SamplingParams(temperature=0.5)), expected)


def test_top_k_keeps_the_k_best() -> None:
    measured = frequencies(SamplingParams(top_k=2))
    assert_distribution(measured, [4 / 7, 3 / 7, 0.0, 0.0, 0.0])


@pytest.mark.parametrize(
    ("top_p", "n_kept"), [(0.39, 1), (0.41, 2), (0.69, 2), (0.71, 3), (0.96, 5), (1.0, 5)]
)
def test_top_p_keeps_the_fewest_that_hold_p(top_p: float, n_kept: int) -> None:
    kept = PROBABILITIES[:n_kept]
    expected = [p / sum(kept) for p in kept] + [0.0] * (5 - n_kept)
    assert_distribution(frequencies(SamplingParams(top_p=top_p)), expected)


def test_top_p_is_taken_of_what_top_k_left() -> None:
    # Of the two best, the first holds 4/7 > 0.5 by itself; of all five it would not.
    assert frequencies(SamplingParams(top_k=2, top_p=0.5), n=50)[0] == 1.0


def test_min_p_cuts_relative_to_the_best() -> None:
    measured = frequencies(SamplingParams(min_p=0.3))  # 0.3 * 0.4 = 0.12
    assert_distribution(measured, [p / 0.85 for p in PROBABILITIES[:3]] + [0.0, 0.0])


@pytest.mark.parametrize("flat", [False, True])
def test_candidates_give_the_same_draws_as_a_full_sort(
    monkeypatch: pytest.MonkeyPatch, flat: bool
) -> None:
    logits = torch.randn(40, 3000, generator=torch.Generator().manual_seed(2))
    logits = logits if flat else logits * 6
    params = SamplingParams(top_p=0.9)

    def draws() -> list[int]:
        return sample(logits, [answer(replace(params, seed=seed)) for seed in range(40)])

    with_candidates = draws()
    monkeypatch.setattr(sampling, "_N_CANDIDATES", 3000)
    assert draws() == with_candidates


def test_same_seed_same_draws_and_index_moves_the_seed() -> None:
    logits = torch.zeros(1, 1000)

    def draws(seed: int | None, index: int = 0) -> list[int]:
        state = answer(SamplingParams(seed=seed), index=index)
        return [sample(logits, [state])[0] for _ in range(8)]

    assert draws(5) == draws(5)
    assert draws(5, index=1) == draws(6)
    assert draws(-(2**63)) != draws(5) != draws(6)
    assert draws(2**63 - 1, index=15) == draws(2**63 - 1, index=15)
    assert draws(None) != draws(None)


def test_neighbours_in_the_batch_change_nothing() -> None:
    logits = torch.randn(4, 60, generator=torch.Generator().manual_seed(3))
    params = [
        SamplingParams(seed=1),
        SamplingParams(seed=2, top_p=0.8),
        replace(GREEDY, logprobs=3),
        SamplingParams(seed=3, temperature=2.0, min_p=0.05, logit_bias={4: 2.0}),
    ]
    together = sample(logits, [answer(one) for one in params])
    alone = [sample(logits[i : i + 1], [answer(one)])[0] for i, one in enumerate(params)]
    assert together == alone


def test_scores_are_left_as_they_were() -> None:
    logits = torch.randn(2, 20)
    before = logits.clone()
    sample(logits, [answer(SamplingParams(logit_bias={1: 5.0})), answer(GREEDY)])
    assert torch.equal(logits, before)


def test_logit_bias_forces_and_forbids_a_token() -> None:
    logits = torch.zeros(1, 10)
    assert sample(logits, [answer(SamplingParams(logit_bias={7: 100.0}))]) == [7]
    forbidden = answer(SamplingParams(logit_bias={i: -1000.0 for i in range(9)}))
    assert sample(logits, [forbidden]) == [9]


def test_min_tokens_holds_the_end_back() -> None:
    logits = logits_of([0.9, 0.08, 0.02])
    state = answer(replace(GREEDY, min_tokens=2), end=(0,))
    assert [sample(logits, [state])[0] for _ in range(4)] == [1, 1, 0, 0]


def test_penalties_are_those_of_the_formulas() -> None:
    row = torch.tensor([2.0, -2.0, 1.0, 0.5])
    params = replace(GREEDY, repetition_penalty=2.0, frequency_penalty=0.25, presence_penalty=0.125)
    state = answer(params, prompt=(1,))
    adjusted = row.clone()
    state.adjust(adjusted)
    assert adjusted.tolist() == [2.0, -4.0, 1.0, 0.5]  # only the prompt's token, repetition only
    state.append(0)
    state.append(0)
    adjusted = row.clone()
    state.adjust(adjusted)
    assert adjusted.tolist() == [2.0 / 2 - 0.25 * 2 - 0.125, -4.0, 1.0, 0.5]


def test_frequency_penalty_walks_through_the_vocabulary() -> None:
    state = answer(replace(GREEDY, frequency_penalty=2.0))
    logits = torch.tensor([[3.0, 2.9, 2.8]])
    assert [sample(logits, [state])[0] for _ in range(6)] == [0, 1, 2, 0, 1, 2]


def test_logprobs_are_of_the_raw_distribution() -> None:
    logits = torch.randn(1, 30, generator=torch.Generator().manual_seed(4))
    params = SamplingParams(
        temperature=0.3, top_k=3, logit_bias={11: 100.0}, logprobs=4, frequency_penalty=1.0
    )
    state = answer(params)
    assert sample(logits, [state]) == [11]
    raw = logits[0].log_softmax(-1)
    (position,) = state.logprobs
    assert position.chosen.token_id == 11
    assert position.chosen.logprob == pytest.approx(raw[11].item(), abs=1e-6)
    assert position.chosen.rank == int((raw > raw[11]).sum()) + 1
    best, ids = raw.topk(4)
    assert [one.token_id for one in position.top] == ids.tolist()
    assert [one.logprob for one in position.top] == pytest.approx(best.tolist(), abs=1e-6)
    assert [one.rank for one in position.top] == [1, 2, 3, 4]


def test_each_answer_gets_as_many_alternatives_as_it_asked_for() -> None:
    wanted = [None, 0, 2, 20]
    states = [answer(replace(GREEDY, logprobs=n)) for n in wanted]
    sample(torch.randn(4, 8), states)
    counts = [[len(one.top) for one in state.logprobs] for state in states]
    assert counts == [[], [0], [2], [8]]


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        (GREEDY, False),
        (SamplingParams(), True),
        (replace(GREEDY, temperature=1e-6), False),
        (replace(GREEDY, logprobs=0), True),
        (replace(GREEDY, min_tokens=1), True),
        (replace(GREEDY, logit_bias={1: 1.0}), True),
        (replace(GREEDY, presence_penalty=0.1), True),
        (replace(GREEDY, repetition_penalty=1.1), True),
        (replace(GREEDY, top_k=1, top_p=0.5, min_p=0.5, seed=1), False),
    ],
)
def test_only_plain_greedy_answers_pass_the_sampler_by(
    params: SamplingParams, expected: bool
) -> None:
    assert sampling.needs_sampler(params) is expected


@settings(max_examples=150, deadline=None)
@given(
    row=st.lists(
        st.sampled_from([0.0, 1.0, -5.0, 1e30, -1e30, math.inf, -math.inf, math.nan]),
        min_size=4,
        max_size=4,
    ),
    temperature=st.sampled_from([0.0, 1e-5, 1.0, 100.0]),
    top_k=st.sampled_from([0, 1, 3, 2**63 - 1]),
    top_p=st.sampled_from([1e-300, 0.5, 1.0]),
    min_p=st.sampled_from([0.0, 1e-300, 1.0]),
    repetition=st.sampled_from([1e-30, 1.0, 100.0]),
    bias=st.sampled_from([{}, {0: 1e6, 1: -1e6}]),
    end=st.sampled_from([(), (0,), (0, 1, 2, 3)]),
)
def test_whatever_the_scores_the_token_is_in_the_vocabulary(
    row, temperature, top_k, top_p, min_p, repetition, bias, end
) -> None:
    params = SamplingParams(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition,
        logit_bias=bias,
        logprobs=2,
        min_tokens=5,
    )
    state = answer(params, prompt=(0, 3), end=end)
    for _ in range(2):
        (token,) = sample(torch.tensor([row]), [state])
        assert 0 <= token < 4
    for position in state.logprobs:
        values = [position.chosen.logprob, *(one.logprob for one in position.top)]
        assert all(sampling.LOWEST_LOGPROB <= value <= 0 for value in values)
