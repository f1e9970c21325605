"""The machine's numbers: measured, finite, and nothing of the process changed by measuring."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch

from veilrun.tune import machine
from veilrun.tune.machine import Machine, probe

SLOW = Machine(n_cores=2, gflops=40.0, gflops_all=64.0, copy_gbps=8.0, int8_gain=2.0, step_us=1.0)


@pytest.fixture
def few_tries(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A rough probe, and the number of threads as it was."""
    monkeypatch.setattr(machine, "_TRIES", 3)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("few_tries")
@pytest.mark.parametrize("n_threads", [1, 3])
def test_a_probe_gives_positive_numbers_and_leaves_threads_alone(n_threads: int):
    torch.set_num_threads(n_threads)
    measured = probe()
    assert torch.get_num_threads() == n_threads
    assert measured.n_cores >= 1
    for name, value in asdict(measured).items():
        assert math.isfinite(value) and value > 0, name
    # What any machine of this century does, and none does: units are right.
    assert 0.1 < measured.gflops < 10_000
    assert 0.1 < measured.copy_gbps < 10_000
    assert 0.05 < measured.int8_gain < 50
    assert 0.05 < measured.step_us < 1000
    assert measured.gflops_all > measured.gflops / 4
    assert all(math.isfinite(value) for value in measured.features().values())


@pytest.mark.usefixtures("few_tries")
def test_a_probe_that_fails_puts_the_threads_back(monkeypatch: pytest.MonkeyPatch):
    def broken() -> float:
        assert torch.get_num_threads() == 1
        raise ArithmeticError

    monkeypatch.setattr(machine, "_int8_gain", broken)
    torch.set_num_threads(3)
    with pytest.raises(ArithmeticError):
        probe()
    assert torch.get_num_threads() == 3


def test_where_there_is_no_8_bit_kernel_there_is_no_gain(monkeypatch: pytest.MonkeyPatch):
    def missing(*_: Any, **__: Any) -> None:
        raise RuntimeError("Didn't find engine for operation quantized::linear_prepack")

    monkeypatch.setattr(torch.ao.quantization, "quantize_dynamic", missing)
    assert machine._int8_gain() == 1.0


def test_the_best_of_several_tries_counts(monkeypatch: pytest.MonkeyPatch):
    """One warm-up that does not count, then the shortest."""
    now, spent = [0.0], iter([0.01, *[5.0] * 5, 2.0, *[5.0] * 6])

    def work() -> None:
        now[0] += next(spent)

    monkeypatch.setattr(machine.time, "perf_counter", lambda: now[0])
    assert machine._best(work) == 2.0
    assert next(spent, None) is None


def test_features_are_logarithms_of_every_number():
    before = SLOW.features()
    assert before["log_gflops_all"] == 6.0
    for name, value in asdict(SLOW).items():
        after = replace(SLOW, **{name: 2 * value}).features()
        moved = {key: after[key] - before[key] for key in before if after[key] != before[key]}
        assert moved == {f"log_{name}": pytest.approx(1.0)}


def test_a_machine_in_words():
    words = SLOW.describe()
    for number in ("2 cores", "40 GFLOP/s", "64 on all", "8.0 GB/s", "2.0 times", "1.0 us"):
        assert number in words
