"""How well a draft guesses, measured on finished answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from unit.node.subjects import write_tiny_llama
from veilrun.errors import CheckpointError
from veilrun.node.agreement import agreement
from veilrun.node.trials import trials
from veilrun.tune.arms import DEFAULT
from veilrun.tune.specimens import Specimen, make
from veilrun.tune.workload import Ask

ASKS = (Ask((1, 5, 9), 6, 0.0, sampled=False), Ask((2, 4), 9, 0.0, sampled=False))
DRAFTED = Specimen("drafted", "llama", 2, 64, 4, 2, 512, draft_accuracy=0.5)


async def answers(folder: Path, asks=ASKS) -> tuple[tuple[int, ...], ...]:
    async with trials(folder, 64) as tried:
        return (await tried.run(DEFAULT, asks, 1, 60.0)).answers


async def test_a_model_agrees_with_itself_to_the_last_id(tmp_path: Path):
    write_tiny_llama(tmp_path)
    answered = await answers(tmp_path)
    assert agreement(tmp_path, ASKS, answered) == 1.0
    other = tuple(tuple((one + 1) % 64 for one in ids) for ids in answered)
    assert agreement(tmp_path, ASKS, other) < 0.5


async def test_a_specimens_draft_is_right_as_often_as_it_was_made_to_be(tmp_path: Path):
    make(DRAFTED, tmp_path)
    many = tuple(Ask((300 + i, 400 - i), 30, 0.0, sampled=False) for i in range(12))
    measured = agreement(tmp_path / "draft", many, await answers(tmp_path, many))
    assert measured == pytest.approx(0.5, abs=0.12)


def test_no_answers_and_no_draft(tmp_path: Path):
    write_tiny_llama(tmp_path)
    assert agreement(tmp_path, (), ()) == 0.0
    with pytest.raises(CheckpointError):
        agreement(tmp_path / "nowhere", (), ())
