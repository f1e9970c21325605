"""Arms take turns on one model's weights, and a failed one is put away."""

from __future__ import annotations

from pathlib import Path

import pytest

from unit.node.subjects import write_tiny_llama
from veilrun.node import model_run
from veilrun.node.measuring import Outcome
from veilrun.node.trials import trials
from veilrun.tune.arms import DEFAULT, by_name
from veilrun.tune.scenario import Status
from veilrun.tune.workload import Ask

ASKS = (Ask((1, 5, 9), 6, 0.0, sampled=False), Ask((2, 4), 4, 0.0, sampled=True))
LONG = (Ask((1, 5, 9), 40, 0.0, sampled=False),)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_tiny_llama(folder)
    return folder


async def test_arms_that_treat_weights_alike_share_them(folder, monkeypatch):
    loaded = []
    load = model_run.load
    monkeypatch.setattr(model_run, "load", lambda *given: loaded.append(given) or load(*given))
    async with trials(folder, 64) as tried:
        outcomes = [
            await tried.run(by_name(name), ASKS, 2, 30.0)
            for name in ("continuous-16", "continuous-4", "single", "single-lookup", "single")
        ]
    assert len(loaded) == 2
    answers = {outcome.answers for outcome in outcomes}
    assert len(answers) == 1
    assert [len(one) for one in answers.pop()] == [6, 4]


async def test_an_arm_without_what_it_needs_crashes_alone(folder):
    async with trials(folder, 64) as tried:
        assert await tried.run(by_name("single-draft"), ASKS, 1, 30.0) is Status.CRASH
        assert isinstance(await tried.run(DEFAULT, ASKS, 1, 30.0), Outcome)


async def test_a_slow_arm_times_out_and_may_be_asked_again(folder):
    async with trials(folder, 64) as tried:
        assert await tried.run(DEFAULT, LONG, 1, 1e-3) is Status.TIMEOUT
        assert isinstance(await tried.run(DEFAULT, LONG, 1, 30.0), Outcome)


async def test_engines_stop_when_the_trials_end(folder):
    async with trials(folder, 64) as tried:
        await tried.run(DEFAULT, ASKS, 1, 30.0)
        engine = await tried._engine(DEFAULT)
        assert engine.ready
    assert not engine.ready


async def test_every_run_has_a_salt_of_its_own(folder):
    arm = by_name("single-prefix")
    prompt = Ask(tuple(range(40)), 2, 0.0, sampled=False)
    async with trials(folder, 64) as tried:
        for _ in range(2):
            await tried.run(arm, [prompt, prompt], 1, 30.0)
        engine = await tried._engine(arm)
        assert engine.prefixes.n_hits == 2  # the second prompt of each run, not the second run
