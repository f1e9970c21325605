"""Requests that share passes, played through by hand and by the code."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from veilrun.tune.queues import Batching, Pace, serve
from veilrun.tune.workload import Workload

PACE = Pace(0.01, 0.0001)
JOINED, PADDED = Batching(16, 512), Batching(16)
FOUR = Workload("x", 4, 4, 10, 5)


@pytest.mark.parametrize("batching", [JOINED, PADDED])
def test_alone_a_request_takes_a_pass_for_each_token(batching: Batching):
    served = serve(Workload("x", 3, 1, 10, 5), batching, PACE)
    assert served.passes == 5  # the prompt's pass gives the first token
    assert served.prompt_tokens == pytest.approx(10)
    assert served.answer_tokens == 4
    assert served.starts == 1


@pytest.mark.parametrize("batching", [JOINED, PADDED])
def test_together_one_pass_serves_all(batching: Batching):
    served = serve(FOUR, batching, PACE)
    assert served.passes == 5
    assert served.prompt_tokens == pytest.approx(40)
    assert served.answer_tokens == 4 * 4
    assert served.starts == 4


def test_a_place_that_is_free_is_taken_at_once_or_when_the_batch_has_ended():
    two_of_four = replace(FOUR, concurrency=2, spread=0.4)
    joined, padded = (serve(two_of_four, one, PACE) for one in (JOINED, PADDED))
    assert joined.passes < padded.passes
    assert joined.prompt_tokens < padded.prompt_tokens  # padded to the longest


def test_who_finds_no_room_waits():
    few, many = (serve(FOUR, Batching(n, 512), PACE) for n in (1, 4))
    assert few.passes == pytest.approx((5 + 10 + 15 + 20) / 4)
    assert many.passes == 5


def test_a_prompt_is_read_in_pieces_between_others_tokens():
    long = Workload("x", 2, 2, 100, 5)
    whole, chunked = (serve(long, Batching(16, n), PACE) for n in (512, 64))
    assert chunked.passes > whole.passes
    alone = replace(long, n_requests=1, prompt_tokens=200)
    assert serve(alone, Batching(16, 64), PACE).passes == math.ceil(200 / 64) + 4
    assert serve(alone, Batching(16, 512), PACE).passes == 1 + 4
    assert chunked.prompt_tokens == pytest.approx(whole.prompt_tokens, rel=0.3)


def test_at_random_moments_company_depends_on_the_pace():
    work = Workload("x", 8, 8, 20, 10, rate_per_s=2.0)
    slow, fast = (serve(work, JOINED, Pace(seconds, seconds / 50)) for seconds in (0.2, 0.001))
    assert fast.starts == pytest.approx(1.0, abs=0.1)
    assert slow.starts > 2
    assert slow.answer_tokens > 2 * fast.answer_tokens


@pytest.mark.parametrize("batching", [JOINED, PADDED, Batching(4, 64)])
@pytest.mark.parametrize(
    "work",
    [
        Workload("least", 1, 1, 1, 1),
        Workload("most", 100_000, 100_000, 1_000_000, 1_000_000, spread=3.0),
        Workload("pace", 50, 9, 200, 30, rate_per_s=1e6, spread=1.0),
    ],
    ids=lambda work: work.kind,
)
def test_every_workload_ends_and_says_the_same_twice(work: Workload, batching: Batching):
    served = serve(work, batching, PACE)
    assert served == serve(work, batching, PACE)
    numbers = (served.passes, served.prompt_tokens, served.looks, served.starts)
    assert all(math.isfinite(one) and one > 0 for one in numbers)
    assert served.passes >= work.answer_tokens / 1.1
