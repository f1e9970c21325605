"""Estimates are finite everywhere and rise and fall with what their docstring says."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from veilrun.tune.estimates import estimates
from veilrun.tune.machine import Machine
from veilrun.tune.shape import Shape
from veilrun.tune.workload import KINDS, Workload, draw

SHAPE = Shape("llama", 6, 512, 8, 8, 1344, 8192, gated=True)
MACHINE = Machine(2, gflops=40, gflops_all=70, copy_gbps=10, int8_gain=1.6, step_us=1.2)
WORK = Workload(
    "chat", n_requests=12, concurrency=4, prompt_tokens=200, answer_tokens=30, rate_per_s=2.0,
    prefix_tokens=80, n_prefixes=2, repetition=0.5, sampled=0.25,
)  # fmt: skip


@st.composite
def machines(draw_: st.DrawFn) -> Machine:
    positive = st.floats(1e-3, 1e6)
    return Machine(draw_(st.integers(1, 512)), *(draw_(positive) for _ in range(5)))


@st.composite
def shapes(draw_: st.DrawFn) -> Shape:
    n_kv_heads, head = draw_(st.integers(1, 16)), draw_(st.integers(1, 256))
    n_heads = n_kv_heads * draw_(st.integers(1, 8))
    return Shape(
        family="any",
        n_layers=draw_(st.integers(1, 200)),
        hidden=n_heads * head,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        feed_forward=draw_(st.integers(1, 100_000)),
        vocab_size=draw_(st.integers(1, 300_000)),
        gated=draw_(st.booleans()),
    )


works = st.builds(
    draw, st.sampled_from(sorted(KINDS)), st.just((1, 64)), st.integers(0, 2**32)
) | st.builds(
    lambda prompt, answer, n, prefixes, gain: Workload(
        "any", n, n, prompt, answer, gain, 0.0, prompt - 1, prefixes, 1.0, 0.0
    ),
    st.integers(1, 1_000_000),
    st.integers(1, 1_000_000),
    st.integers(1, 100_000),
    st.integers(1, 100_000),
    st.floats(0, 1e6),
)


@given(shapes(), machines(), works)
def test_estimates_are_finite_and_gains_are_none_or_more(
    shape: Shape, machine: Machine, work: Workload
):
    found = estimates(shape, machine, work)
    assert all(math.isfinite(value) for value in found.values())
    assert found["estimate_reuse_gain"] >= 0
    assert found["estimate_guess_gain"] >= 0
    assert found["estimate_load"] >= 0
    assert found.keys() == estimates(SHAPE, MACHINE, WORK).keys()


def moved(name: str, change: dict[str, Any]) -> float:
    """By how much an estimate moves when these numbers do."""
    parts: list[Any] = []
    for part in (SHAPE, MACHINE, WORK):
        own = {key: value for key, value in change.items() if key in part.__slots__}
        parts.append(replace(part, **own))
    return (
        estimates(*parts)[f"estimate_{name}"] - estimates(SHAPE, MACHINE, WORK)[f"estimate_{name}"]
    )


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("step", {"n_layers": 12}),
        ("step", {"vocab_size": 32768}),
        ("step", {"step_us": 2.4}),
        ("step", {"copy_gbps": 5.0}),
        ("small_share", {"step_us": 2.4}),
        ("small_share", {"copy_gbps": 20.0}),
        ("small_share", {"feed_forward": 672}),
        ("small_share", {"vocab_size": 1024}),
        ("prefill_over_decode", {"prompt_tokens": 400}),
        ("prefill_over_decode", {"answer_tokens": 15}),
        ("prefill_over_decode", {"gflops_all": 35.0}),
        ("prefill_over_decode", {"copy_gbps": 20.0}),
        ("reuse_gain", {"prefix_tokens": 160}),
        ("reuse_gain", {"n_requests": 24}),
        ("reuse_gain", {"n_prefixes": 1}),
        ("reuse_gain", {"answer_tokens": 15}),
        ("guess_gain", {"repetition": 0.9}),
        ("guess_gain", {"sampled": 0.0}),
        ("guess_gain", {"answer_tokens": 60}),
        ("guess_gain", {"prompt_tokens": 100}),
        ("batch_gain", {"concurrency": 8}),
        ("batch_gain", {"gflops_all": 140.0}),
        ("batch_gain", {"answer_tokens": 60}),
        ("load", {"rate_per_s": 4.0}),
        ("load", {"answer_tokens": 60}),
        ("load", {"step_us": 2.4}),
    ],
)
def test_an_estimate_rises_with_what_makes_its_subject_greater(name: str, change: dict[str, Any]):
    assert moved(name, change) > 0.005


def test_what_cannot_help_is_estimated_at_nothing():
    for name, change in (
        ("reuse_gain", {"prefix_tokens": 0}),
        ("reuse_gain", {"n_requests": 2}),  # two prefixes: each is new
        ("guess_gain", {"repetition": 0.0}),
        ("guess_gain", {"sampled": 1.0}),
        ("load", {"rate_per_s": 0.0}),
        ("batch_gain", {"concurrency": 1}),
    ):
        before = estimates(SHAPE, MACHINE, WORK)[f"estimate_{name}"]
        assert before > 0.01
        assert before + moved(name, change) == pytest.approx(0, abs=1e-9), name


def test_more_company_than_requests_changes_nothing():
    assert moved("batch_gain", {"concurrency": 12}) == moved("batch_gain", {"concurrency": 64})


def test_a_slower_machine_and_a_smaller_model_look_alike():
    """Four times slower everywhere, a quarter of the weights: times of the parts scale together."""
    slow = replace(MACHINE, gflops_all=MACHINE.gflops_all / 4, copy_gbps=MACHINE.copy_gbps / 4)
    small = Shape("llama", 6, 256, 8, 8, 672, 4096, gated=True)
    here, there = estimates(SHAPE, MACHINE, WORK), estimates(small, slow, WORK)
    assert here == {name: pytest.approx(value) for name, value in there.items()}
