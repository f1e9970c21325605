"""What a node tells the tuner of a draft: how well it guesses, measured or as usual."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from veilrun.errors import RefusedError
from veilrun.node.tuning import Wish, choose
from veilrun.tune.machine import Machine
from veilrun.tune.specimens import Specimen, make
from veilrun.tune.workload import USUAL_AGREEMENT, Workload

MACHINE = Machine(1, 60.0, 60.0, 9.0, 2.0, 1.5)
DRAFTED = Specimen("drafted", "llama", 2, 64, 4, 2, 512, draft_accuracy=0.9)
WORK = Workload("mine", 4, 2, 20, 24)


class Listening:
    """Stands for a tuner: notes what it is told, and ends there."""

    def __init__(self) -> None:
        self.told: dict[str, float] = {}

    def advise(self, features, text, situation):
        self.told = dict(features)
        raise RefusedError("enough heard")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drafted")
    make(DRAFTED, folder)
    return folder


async def agreement(folder: Path, wish: Wish) -> float:
    tuner = Listening()
    with pytest.raises(RefusedError, match="enough"):
        await choose(folder, tuner, wish, MACHINE)
    return tuner.told["workload.agreement"]


async def test_a_draft_is_measured_unless_the_workload_says_how_well_it_guesses(folder: Path):
    draft = folder / "draft"
    measured = await agreement(folder, Wish(WORK, draft=draft))
    assert measured == pytest.approx(0.9, abs=0.1)
    assert await agreement(folder, Wish(replace(WORK, agreement=0.25), draft=draft)) == 0.25
    untried = Wish(WORK, draft=draft, try_out=False)
    assert await agreement(folder, untried) == USUAL_AGREEMENT
    assert await agreement(folder, Wish(WORK)) == 0
