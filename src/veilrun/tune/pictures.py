"""The two pictures of an evaluation, as files: who wastes how much time, and what helps where."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from veilrun import atomic
from veilrun.errors import UsageError
from veilrun.tune.evaluation import Evaluation
from veilrun.tune.plots import heat_map, regret_curves
from veilrun.tune.portfolio import OURS
from veilrun.tune.scenario import Scale, Scenario


def draw(scenario: Scenario, evaluations: Sequence[Evaluation], folder: Path) -> None:
    """Write `regret-WHAT.svg` for each evaluation, and `arms.svg`.

    Raises:
        UsageError: the table is not of our own scale, where regret is a ratio of times.
    """
    if scenario.scale is not Scale.LATENCY:
        raise UsageError(f"{scenario.name} is not a table of latencies: there is nothing to draw")
    folder.mkdir(parents=True, exist_ok=True)
    for one in evaluations:
        ratios = {
            score.name: np.array(score.regret) + 1
            for score in one.scores
            if score.name not in ("oracle", "random")
        }
        title = f"share of tasks within a factor of the best arm's time, {one.hold_out} held out"
        picture = regret_curves(title, ratios, ours=OURS if OURS in ratios else None)
        atomic.write_file(folder / f"regret-{one.hold_out}.svg", picture.encode())
    kinds, values = speed_ups(scenario)
    title = "speed-up over the default arm, by kind of workload"
    ran = np.isfinite(values).any(1)
    arms = [arm for arm, has_run in zip(scenario.arms, ran, strict=True) if has_run]
    picture = heat_map(title, arms, kinds, values[ran])
    atomic.write_file(folder / "arms.svg", picture.encode())


def speed_ups(scenario: Scenario) -> tuple[tuple[str, ...], np.ndarray[tuple[int, int]]]:
    """Kinds of workload, and float64 [arms, kinds]: geometric means over their tasks; nan: none.

    A run that failed counts as its loss does: ten times the slowest of its task.
    """
    words = np.array(scenario.groups["workload"])
    kinds = tuple(dict.fromkeys(words.tolist()))
    default = scenario.arms.index(scenario.default or scenario.arms[0])
    loss = scenario.loss
    gain = loss[:, default : default + 1] - loss
    values = np.full((len(scenario.arms), len(kinds)), np.nan)
    for column, kind in enumerate(kinds):
        of_kind = gain[words == kind]
        known = np.isfinite(of_kind).any(0)
        values[known, column] = np.exp(np.nanmean(of_kind[:, known], axis=0))
    return kinds, values
