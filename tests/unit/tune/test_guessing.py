"""Prompt lookup on finished answers: the same guesses as a plain lookup and as transformers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation.candidate_generator import PromptLookupCandidateGenerator

from veilrun.tune.guessing import N_PROPOSED, share_guessed

Ids = Sequence[int]


def plain_guess(known: Ids) -> Ids:
    """What followed the first place where the last two ids, else the last one, stood before."""
    for n in (2, 1):
        for start in range(len(known) - n):
            if known[start : start + n] == known[-n:]:
                return known[start + n : start + n + N_PROPOSED]
    return []


def stock_guess(known: Ids, max_length: int) -> Ids:
    generator = PromptLookupCandidateGenerator(
        num_output_tokens=N_PROPOSED, max_matching_ngram_size=2, max_length=max_length
    )
    candidates, _ = generator.get_candidates(torch.tensor([list(known)]))
    ids: list[int] = candidates[0, len(known) :].tolist()
    return ids


def n_free(prompt: Ids, answer: Ids, guess: Callable[[Ids], Ids]) -> int:
    """Decode with checked guesses: each check keeps the right ones, then adds one id of its own."""
    known, left, n = list(prompt), list(answer), 0
    while left:
        proposed = guess(known)
        n_right = 0
        while n_right < min(len(proposed), len(left) - 1) and proposed[n_right] == left[n_right]:
            n_right += 1
        n += n_right
        known += left[: n_right + 1]
        left = left[n_right + 1 :]
    return n


@st.composite
def conversations(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    """Prompt and answer of few different ids, in pieces that come again."""
    n_ids = draw(st.sampled_from([1, 2, 3, 6, 40]))
    one = st.integers(0, n_ids - 1)
    pieces = draw(st.lists(st.lists(one, min_size=1, max_size=6), min_size=1, max_size=3))
    order = st.lists(st.sampled_from(pieces) | st.lists(one, max_size=2), max_size=12)
    prompt = [draw(one)] + [i for piece in draw(order) for i in piece]
    answer = [i for piece in draw(order) for i in piece] + [draw(one)]
    return prompt, answer


@given(conversations())
@settings(max_examples=400, deadline=None)
def test_it_guesses_as_a_plain_lookup_does(of: tuple[list[int], list[int]]):
    prompt, answer = of
    expected = n_free(prompt, answer, plain_guess)
    assert share_guessed(prompt, answer) == expected / len(answer)


@given(conversations())
@settings(max_examples=100, deadline=None)
def test_it_guesses_as_transformers_does(of: tuple[list[int], list[int]]):
    prompt, answer = of
    max_length = len(prompt) + len(answer)
    expected = n_free(prompt, answer, lambda known: stock_guess(known, max_length))
    assert share_guessed(prompt, answer) == expected / len(answer)


def test_what_never_came_before_is_never_guessed():
    assert share_guessed(range(100), range(100, 200)) == 0
    assert share_guessed([1, 2, 3], []) == 0
    assert share_guessed([5] * 20, [5]) == 0  # the last id comes with the check anyway
    assert share_guessed([], [1, 2, 1, 2, 1, 2]) > 0


def test_a_copied_prompt_comes_nearly_free():
    """Eight right ids, then the ninth with the check."""
    text = list(range(91))
    assert share_guessed([*text, 0], text[1:]) == pytest.approx(8 / 9)


def test_the_first_place_counts_not_the_last():
    assert share_guessed([1, 2, 3, 1, 2, 4, 1, 2], [3, 9]) == 0.5
    assert share_guessed([1, 2, 3, 1, 2, 4, 1, 2], [4, 9]) == 0


def test_two_ids_count_before_one():
    assert share_guessed([2, 8, 1, 2, 3, 1, 2], [3, 9]) == 0.5
    assert share_guessed([2, 8, 1, 2, 3, 1, 2], [8, 9]) == 0


@pytest.mark.parametrize("loop", [1, 3, 12])
def test_an_answer_in_a_loop_is_mostly_guessed_after_one_round(loop: int):
    answer = [i % loop for i in range(120)]
    shares = share_guessed(range(500, 520), answer)
    assert shares > 0.7
    assert share_guessed(range(500, 520), answer[:loop]) == 0
