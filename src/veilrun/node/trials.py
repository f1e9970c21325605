"""Trying arms on one model: engines side by side, on the same weights, taking turns.

The collector runs all arms so, and a node that tunes itself runs two or three before it opens.

Invariant: an engine that was started is stopped when the trials end, whatever happened.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

from veilrun.errors import VeilrunError
from veilrun.node import measuring, model_run
from veilrun.node.clocks import Clock
from veilrun.node.engine import Engine
from veilrun.node.measuring import Outcome
from veilrun.node.tuned import engine_for, run_of
from veilrun.tune.arms import Arm
from veilrun.tune.scenario import Status
from veilrun.tune.workload import Ask


class Trials:
    """Engines of several arms over the model in one folder; see `trials`."""

    def __init__(
        self, folder: Path, max_model_len: int, draft: Path | None, clock: Clock | None
    ) -> None:
        self._folder, self._max_model_len, self._draft = folder, max_model_len, draft
        self._clock = clock
        self._engines: dict[str, Engine] = {}
        self._models: dict[object, Any] = {}
        self._salts = (f"trial {i}" for i in itertools.count())

    async def run(
        self, arm: Arm, asks: Sequence[Ask], concurrency: int, cutoff_s: float
    ) -> Outcome | Status:
        """Serve the traffic once on this arm; or how it failed. A failed engine is thrown away."""
        try:
            engine = await self._engine(arm)
            return await measuring.measure(
                engine, asks, concurrency, next(self._salts), cutoff_s, self._clock
            )
        except TimeoutError:
            await self.drop(arm)
            return Status.TIMEOUT
        except MemoryError:
            await self.drop(arm)
            return Status.MEMOUT
        except (VeilrunError, RuntimeError):  # the latter is what torch raises
            await self.drop(arm)
            return Status.CRASH

    def has_run(self, arm: Arm) -> bool:
        """Whether this arm's engine is up: it has been asked before."""
        return arm.name in self._engines

    async def drop(self, arm: Arm) -> None:
        """Stop this arm's engine, if it runs."""
        engine = self._engines.pop(arm.name, None)
        if engine is not None:
            await engine.stop()

    async def close(self) -> None:
        """Stop all engines."""
        for name in list(self._engines):
            await self._engines.pop(name).stop()

    async def _engine(self, arm: Arm) -> Engine:
        if arm.name not in self._engines:
            engine = engine_for(
                arm,
                self._folder,
                max_model_len=self._max_model_len,
                draft=self._draft,
                load=partial(self._model, arm),
            )
            await engine.start()
            self._engines[arm.name] = engine
        return self._engines[arm.name]

    def _model(self, arm: Arm) -> Any:
        """One model for all arms that treat it alike; engines set attention in place."""
        alike = (arm.batching, arm.weights, arm.compiled, arm.attention)
        if alike not in self._models:
            self._models[alike] = model_run.load(self._folder, run_of(arm))
        return self._models[alike]


@asynccontextmanager
async def trials(
    folder: Path, max_model_len: int, draft: Path | None = None, clock: Clock | None = None
) -> AsyncIterator[Trials]:
    """Try arms while the block lasts. clock: that times are measured on; None: the wall's."""
    tried = Trials(folder, max_model_len, draft, clock)
    try:
        yield tried
    finally:
        await tried.close()
