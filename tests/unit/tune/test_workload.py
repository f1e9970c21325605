"""Workloads: bounds, files, kinds; traffic has the lengths, prefixes and arrivals asked for."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from veilrun.errors import DecodeError, UsageError
from veilrun.tune import workload as module
from veilrun.tune.workload import KINDS, Workload, draw, observed, traffic, typical

PLAIN = Workload("chat", n_requests=12, concurrency=3, prompt_tokens=60, answer_tokens=20)
VOCAB = 1000


@st.composite
def workloads(draw_: st.DrawFn, most_tokens: int = 5000, most_requests: int = 12) -> Workload:
    prompt = draw_(st.integers(1, most_tokens))
    return Workload(
        kind=draw_(st.text(max_size=8)),
        n_requests=draw_(st.integers(1, most_requests)),
        concurrency=draw_(st.integers(1, 40)),
        prompt_tokens=prompt,
        answer_tokens=draw_(st.integers(1, most_tokens)),
        rate_per_s=draw_(st.just(0.0) | st.floats(0.01, 100)),
        spread=draw_(st.floats(0, 3)),
        prefix_tokens=draw_(st.integers(0, prompt - 1)),
        n_prefixes=draw_(st.integers(1, 5)),
        repetition=draw_(st.floats(0, 1)),
        sampled=draw_(st.floats(0, 1)),
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n_requests", 0),
        ("n_requests", 100_001),
        ("concurrency", 0),
        ("prompt_tokens", 0),
        ("prompt_tokens", 1_000_001),
        ("answer_tokens", 0),
        ("answer_tokens", -3),
        ("rate_per_s", -0.1),
        ("rate_per_s", math.inf),
        ("rate_per_s", math.nan),
        ("spread", 3.01),
        ("spread", math.nan),
        ("prefix_tokens", -1),
        ("prefix_tokens", PLAIN.prompt_tokens),
        ("n_prefixes", 0),
        ("repetition", 1.01),
        ("repetition", -0.01),
        ("repetition", math.nan),
        ("sampled", 1.01),
    ],
)
def test_a_number_out_of_bounds_is_refused_by_name(name: str, value: float):
    with pytest.raises(UsageError, match=name):
        replace(PLAIN, **{name: value})


@given(workloads())
def test_a_workload_survives_json(one: Workload):
    assert Workload.from_json(json.loads(json.dumps(one.to_json()))) == one


@given(workloads())
def test_features_are_finite_numbers_and_the_kind_is_none_of_them(one: Workload):
    features = one.features()
    assert all(math.isfinite(value) for value in features.values())
    assert features == replace(one, kind="other").features()
    assert 0 <= features["reused_share"] < 1
    assert str(one.n_requests) in one.describe() and str(one.prompt_tokens) in one.describe()


def test_features_see_every_number():
    base = replace(PLAIN, prefix_tokens=20, n_prefixes=2, repetition=0.5, sampled=0.5)
    changed: dict[str, float] = {
        "n_requests": 6,
        "concurrency": 2,
        "prompt_tokens": 90,
        "answer_tokens": 21,
        "rate_per_s": 2.0,
        "spread": 0.3,
        "prefix_tokens": 21,
        "n_prefixes": 1,
        "repetition": 0.4,
        "sampled": 0.4,
    }
    for name, value in changed.items():
        assert replace(base, **{name: value}).features() != base.features(), name


BAD_JSON: list[dict[str, Any]] = [
    {"n_reqests": 3},
    {"n_requests": "3"},
    {"n_requests": 3.0},
    {"n_requests": True},
    {"n_requests": None},
    {"n_requests": [3]},
    {"n_requests": 0},
    {"n_requests": 10**400},
    {"kind": 7},
    {"rate_per_s": "fast"},
    {"rate_per_s": False},
    {"rate_per_s": math.inf},
    {"rate_per_s": 10**400},
    {"sampled": math.nan},
    {"prefix_tokens": 60},
    {"spread": {}},
]


@pytest.mark.parametrize("change", BAD_JSON, ids=lambda one: str(one)[:40])
def test_json_that_holds_no_workload_is_refused(change: dict[str, Any]):
    (name,) = change
    with pytest.raises(DecodeError, match=name):
        Workload.from_json(PLAIN.to_json() | change)


@pytest.mark.parametrize("name", ["kind", "n_requests", "concurrency", "prompt_tokens"])
def test_what_has_no_default_must_be_there(name: str):
    value = PLAIN.to_json()
    del value[name]
    with pytest.raises(DecodeError, match=name):
        Workload.from_json(value)


def test_what_has_a_default_need_not_be_there():
    least = {
        name: value
        for name, value in PLAIN.to_json().items()
        if value != 0 and name != "n_prefixes"
    }
    assert len(least) == 5
    assert Workload.from_json(least) == PLAIN


def test_a_file_holds_a_workload(tmp_path: Path):
    path = tmp_path / "work.json"
    path.write_text(json.dumps(PLAIN.to_json()))
    assert module.read(path) == PLAIN


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "3",
        '"chat"',
        "[" * 100_000,
        '{"n_requests": ' + "9" * 5000 + "}",
        "{}",
        "NaN",
    ],
    ids=lambda text: text[:16],
)
def test_a_file_that_holds_none_is_refused(tmp_path: Path, content: str):
    path = tmp_path / "work.json"
    path.write_text(content)
    with pytest.raises(DecodeError):
        module.read(path)


def test_a_file_that_cannot_be_read_is_the_callers_fault(tmp_path: Path):
    (tmp_path / "latin").write_bytes(b"\xff\xfe{}")
    for path in (tmp_path / "none.json", tmp_path, tmp_path / "latin"):
        with pytest.raises(UsageError, match="cannot read"):
            module.read(path)


@given(st.sampled_from(sorted(KINDS)), st.integers(0, 2**32))
def test_a_drawn_workload_is_of_its_kind(kind: str, seed: int):
    ranges, one = KINDS[kind], draw(kind, (6, 24), seed)
    assert one == draw(kind, (6, 24), seed)
    assert one.kind == kind
    assert 6 <= one.n_requests <= 24
    if ranges.at_once:
        assert one.concurrency == one.n_requests
    else:
        least, most = ranges.concurrency
        assert min(least, one.n_requests) <= one.concurrency <= min(most, one.n_requests)
    for value, (least, most) in (
        (one.prompt_tokens, ranges.prompt),
        (one.answer_tokens, ranges.answer),
        (one.rate_per_s, ranges.rate_per_s),
        (one.repetition, ranges.repetition),
        (one.spread, (0.0, 0.4)),
        (one.n_prefixes, (1, 2)),
    ):
        assert least <= value <= most
    assert one.sampled == 0 or ranges.sampled[0] <= one.sampled <= ranges.sampled[1]
    least_share, most_share = ranges.prefix_share
    share = one.prefix_tokens / one.prompt_tokens
    assert least_share - 1 / one.prompt_tokens <= share <= most_share


def test_draws_of_a_kind_differ_and_kinds_differ():
    for kind in KINDS:
        assert len({draw(kind, (6, 24), seed) for seed in range(20)}) == 20
    for kind, ranges in KINDS.items():  # the whole range, as many short ones as long ones
        logs = np.log([draw(kind, (8, 8), seed).prompt_tokens for seed in range(400)])
        least, most = np.log(ranges.prompt)
        assert min(logs) < least + 0.1 * (most - least)
        assert max(logs) > most - 0.1 * (most - least)
        # A uniform value's mean is off by (most - least) / sqrt(12 n); five times that.
        off = 5 * (most - least) / (12 * len(logs)) ** 0.5
        assert np.mean(logs) == pytest.approx((least + most) / 2, abs=off)
    several = [draw("chat", (8, 8), seed) for seed in range(200)]
    assert 0.5 < np.mean([one.n_prefixes == 1 for one in several]) < 0.9
    assert 0.3 < np.mean([one.sampled == 0 for one in several]) < 0.7


@pytest.mark.parametrize("kind", KINDS)
def test_a_typical_workload_is_within_its_kind(kind: str):
    ranges, one = KINDS[kind], typical(kind)
    assert (one.kind, one.n_requests) == (kind, 16)
    assert typical(kind, 5).n_requests == 5
    assert 1 <= typical(kind, 1).concurrency <= 1
    for value, (least, most) in (
        (one.prompt_tokens, ranges.prompt),
        (one.answer_tokens, ranges.answer),
        (one.concurrency, (16, 16) if ranges.at_once else ranges.concurrency),
        (one.rate_per_s, ranges.rate_per_s),
        (one.repetition, ranges.repetition),
        (one.prefix_tokens / one.prompt_tokens, ranges.prefix_share),
    ):
        assert least <= value <= most
    logs = np.log([draw(kind, (16, 16), seed).prompt_tokens for seed in range(400)])
    assert abs(np.log(one.prompt_tokens) - np.median(logs)) < 0.5 * np.std(logs)


def test_an_unknown_kind_is_refused():
    with pytest.raises(UsageError, match=r"'poem'.*chat"):
        draw("poem", (1, 2), 0)
    with pytest.raises(UsageError, match=r"'poem'.*chat"):
        typical("poem")


def test_without_spread_lengths_are_the_medians():
    for ask in traffic(replace(PLAIN, prefix_tokens=10), VOCAB, 0, max_tokens=512):
        assert (len(ask.token_ids), ask.answer_tokens) == (60, 20)


def test_with_spread_the_medians_stay():
    many = replace(PLAIN, n_requests=2001, spread=0.5)
    asks = traffic(many, VOCAB, 0, max_tokens=4096)
    for lengths, median in (
        ([len(ask.token_ids) for ask in asks], 60),
        ([ask.answer_tokens for ask in asks], 20),
    ):
        # The median of n normal values is off by 1.25 sd / sqrt(n); five times that, and rounding.
        off = 5 * 1.25 * 0.5 / math.sqrt(len(asks)) + 0.5 / median
        assert abs(math.log(np.median(lengths) / median)) < off
        assert np.std(np.log(lengths)) == pytest.approx(0.5, abs=0.05)


@given(workloads(most_tokens=3000), st.integers(0, 100), st.integers(2, 2000))
@settings(max_examples=60, deadline=None)
def test_traffic_fits_whatever_the_workload(one: Workload, seed: int, max_tokens: int):
    asks = traffic(one, VOCAB, seed, n_looping=VOCAB // 4, max_tokens=max_tokens)
    assert len(asks) == one.n_requests
    for ask in asks:
        assert len(ask.token_ids) >= 1 and ask.answer_tokens >= 1
        assert len(ask.token_ids) + ask.answer_tokens <= max_tokens
        assert 0 <= min(ask.token_ids) and max(ask.token_ids) < VOCAB
        assert all(type(value) is int for value in ask.token_ids)
    times = [ask.at_s for ask in asks]
    assert times[0] == 0 and times == sorted(times)


@pytest.mark.parametrize("n_prefixes", [1, 3])
def test_prefixes_are_shared_and_nothing_else_is(n_prefixes: int):
    one = replace(PLAIN, prefix_tokens=24, n_prefixes=n_prefixes, spread=0.4)
    asks = traffic(one, VOCAB, 0, max_tokens=512)
    starts = [ask.token_ids[:24] for ask in asks]
    assert len(set(starts)) == n_prefixes
    assert all(starts[i] == starts[i % n_prefixes] for i in range(len(starts)))
    # Two random ids are equal once in a thousand: what follows is the request's own.
    assert len({ask.token_ids[24:28] for ask in asks}) == len(asks)
    assert all(len(ask.token_ids) > 24 for ask in asks)


def test_without_a_prefix_nothing_is_shared():
    asks = traffic(PLAIN, VOCAB, 0, max_tokens=512)
    assert len({ask.token_ids[:4] for ask in asks}) == len(asks)


def test_requests_come_at_once_or_at_random_moments():
    assert {ask.at_s for ask in traffic(PLAIN, VOCAB, 0, max_tokens=512)} == {0.0}
    n, rate_per_s = 2000, 8.0
    paced = replace(PLAIN, n_requests=n, rate_per_s=rate_per_s)
    times = np.array([ask.at_s for ask in traffic(paced, VOCAB, 0, max_tokens=512)])
    gaps = np.diff(times)
    # Gaps of a Poisson process: the standard deviation equals the mean.
    assert np.mean(gaps) == pytest.approx(1 / rate_per_s, rel=5 / math.sqrt(n))
    assert np.std(gaps) == pytest.approx(1 / rate_per_s, rel=0.15)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_last_ids_begin_as_many_loops_as_the_workload_says(share: float):
    one = replace(PLAIN, n_requests=50, repetition=share)
    asks = traffic(one, VOCAB, 0, n_looping=240, max_tokens=512)
    looping = [ask.token_ids[-1] < 240 for ask in asks]
    assert sum(looping) == round(50 * share)
    if 0 < share < 1:
        assert looping != sorted(looping) and looping != sorted(looping, reverse=True)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_as_many_requests_are_sampled_as_the_workload_says(share: float):
    one = replace(PLAIN, n_requests=40, sampled=share, repetition=0.5)
    asks = traffic(one, VOCAB, 0, n_looping=240, max_tokens=512)
    assert sum(ask.sampled for ask in asks) == round(40 * share)
    if share == 0.5:  # drawn apart from which of them loop
        both = sum(ask.sampled and ask.token_ids[-1] < 240 for ask in asks)
        assert 0 < both < 20


@given(workloads(most_tokens=300), st.integers(0, 2**63 - 2))
@settings(max_examples=25, deadline=None)
def test_a_seed_is_a_traffic(one: Workload, seed: int):
    def made(of: int) -> object:
        return traffic(one, 2**31, of, max_tokens=2048)

    assert made(seed) == made(seed)
    assert made(seed) != made(seed + 1)


def test_what_was_observed_is_what_was_drawn_but_for_chance():
    drawn = Workload(
        "mine", 400, 8, 100, 30, rate_per_s=5.0, spread=0.3, prefix_tokens=20, sampled=0.25
    )
    seen = observed(drawn, traffic(drawn, 500, 0, max_tokens=4096))
    assert seen.prompt_tokens == pytest.approx(100, rel=0.05)
    assert seen.answer_tokens == pytest.approx(30, rel=0.05)
    assert seen.spread == pytest.approx(0.3, rel=0.1)
    assert seen.rate_per_s == pytest.approx(5.0, rel=0.15)
    assert seen.sampled == 0.25
    assert (seen.kind, seen.prefix_tokens, seen.concurrency) == ("mine", 20, 8)


def test_answers_of_few_tokens_do_not_tell_how_lengths_spread():
    drawn = Workload("mine", 200, 8, 100, 1, spread=0.3)
    seen = observed(drawn, traffic(drawn, 500, 0, max_tokens=4096))
    assert seen.spread == pytest.approx(0.3, rel=0.15)
    alone = observed(drawn, traffic(drawn, 500, 0, max_tokens=4096)[:1])
    assert alone.spread == 0 and alone.prompt_tokens > 0
