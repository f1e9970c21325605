"""The built-in engine: transformers' continuous batching behind the node's engine interface.

The model runs on a thread of its own; everything here runs on the event loop. A request becomes
`n` answers in that run. Their outputs are cumulative, so only the latest of each is kept, and a
slow reader gets several tokens at once instead of holding anything up.

An error on the thread ends it. Then every request in flight ends with finish_reason "abort",
`ready` turns False, and a new run is started over the model that is still loaded.

Invariant: whatever is submitted has its pages reserved until it ends, so the run never has to
evict, and the weights come from safetensors alone: no pickle, no code from the checkpoint.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from veilrun.errors import BusyError, UsageError
from veilrun.node import loading, model_run
from veilrun.node.capacity import Capacity
from veilrun.node.continuous import ContinuousBatch
from veilrun.node.engine import EngineLimits
from veilrun.node.model_run import Loader, ModelRun
from veilrun.node.plan import pages_for, plan_batches
from veilrun.node.sampling import AnswerState, needs_sampler
from veilrun.tune.arms import Attention, Weights
from veilrun.wire.generate import Choice, FinishReason, GenerateRequest, SamplingParams

_log = logging.getLogger(__name__)

_WATCH_S: Final = 0.25
_RESTART_S: Final = 2.0
_MAX_RESTARTS: Final = 3
_CPU_BATCH_TOKENS: Final = 512
_CUDA_BATCH_TOKENS: Final = 2048


@dataclass(frozen=True, slots=True)
class TransformersSettings:
    """How to run the model.

    max_running: answers decoded together.
    max_model_len: prompt and answer together, in tokens; None: the model's own, up to 8192.
    cache_bytes: bound of the attention cache and what grows with it; None: 2 GiB on a CPU, 80 %
        of what the weights leave free on a GPU.
    max_batch_tokens: tokens per forward pass: longer prompts are read in such pieces, between the
        other answers' tokens (chunked prefill). None: 512 on a CPU, 2048 on a GPU.
    device, dtype, attention, weights, n_threads: see `ModelRun`.
    """

    max_running: int = 16
    max_model_len: int | None = None
    cache_bytes: int | None = None
    max_batch_tokens: int | None = None
    device: str = "auto"
    dtype: str = "auto"
    attention: Attention = "sdpa"
    weights: Weights = "stored"
    n_threads: int | None = None

    @property
    def run(self) -> ModelRun:
        """How the model's own arithmetic runs."""
        return ModelRun(self.device, self.dtype, self.attention, self.weights, self.n_threads)


class TransformersEngine:
    """Serves one folder of safetensors weights; see `node.engine.Engine`."""

    name = "transformers"

    def __init__(
        self,
        folder: Path,
        settings: TransformersSettings | None = None,
        load: Loader | None = None,
    ) -> None:
        """Read the configuration only, and plan the memory.

        Raises:
            UsageError: settings that do not suit the model; CheckpointError: no readable config.
        """
        settings = settings or TransformersSettings()
        self._folder, self._model_run, self._load = folder, settings.run, load
        config = loading.load_config(folder).get_text_config()
        device, dtype = self._model_run.place(config)
        batch_tokens = _CUDA_BATCH_TOKENS if device.type == "cuda" else _CPU_BATCH_TOKENS
        self._plan = plan_batches(
            config,
            itemsize_bytes=dtype.itemsize,
            max_running=settings.max_running,
            max_model_len=settings.max_model_len,
            max_batch_tokens=settings.max_batch_tokens or batch_tokens,
            cache_bytes=settings.cache_bytes or loading.default_cache_bytes(folder, device),
        )
        self.limits = EngineLimits(config.vocab_size, self._plan.max_model_len, self._plan.max_n)
        self._room = Capacity(self._plan.n_pages)
        self._serial = itertools.count()
        self._runs: set[_Run] = set()
        self._end_ids: tuple[int, ...] = ()
        self._model: Any = None
        self._batch: ContinuousBatch | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._restarting = False

    @property
    def ready(self) -> bool:
        """Whether it can answer now."""
        return self._batch is not None and self._batch.is_alive and not self._restarting

    @property
    def n_active(self) -> int:
        """Answers the run holds at this moment."""
        return self._batch.n_active() if self._batch else 0

    async def start(self) -> None:
        """Load the model, start the run and let it answer once.

        Raises:
            CheckpointError: weights are missing, damaged, or not safetensors.
            UsageError: continuous batching does not support this architecture.
        """
        self._model = await asyncio.to_thread(
            model_run.take, self._folder, self._model_run, self._load
        )
        self._end_ids = loading.end_ids(self._model)
        try:
            await self._launch()
        except BaseException:
            await self.stop()  # the run's thread would keep the process alive
            raise
        self._watcher = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        """Free the model. Requests still running end with finish_reason "abort"."""
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
            self._watcher = None
        batch, self._batch = self._batch, None
        if batch is not None:
            await asyncio.to_thread(batch.stop)
        self._abort_runs()
        self._model = None

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Choice]:
        """Yield each answer's next tokens; see `node.engine.Engine.generate`."""
        params = request.sampling_params
        room_left = self.limits.max_model_len - len(request.token_ids)
        n_new = min(params.max_tokens, room_left)
        n_pages = pages_for(len(request.token_ids) + n_new)
        async with self._room.hold(params.n * n_pages):
            if not self.ready or self._batch is None:
                raise BusyError("the engine is starting or stopping", _RESTART_S)
            run = _Run(request, () if params.ignore_eos else self._end_ids)
            self._runs.add(run)
            try:
                run.submit(self._batch, next(self._serial), n_new)
                while run.is_open:
                    await run.news.wait()
                    for choice in run.take():
                        yield choice
            finally:
                self._runs.discard(run)
                run.close()

    async def _launch(self) -> None:
        """Start a run and answer one request, so that what cannot work fails here."""
        self._batch = ContinuousBatch(self._model, self._plan, self._model_run.use_threads)
        self._batch.start()
        run = _Run(GenerateRequest((0,), SamplingParams(temperature=0.0)), ())
        reasons: list[FinishReason | None] = []
        try:
            run.submit(self._batch, next(self._serial), 1)
            while run.is_open:
                await run.news.wait()
                reasons += [choice.finish_reason for choice in run.take()]
        finally:
            run.close()
        if "abort" in reasons:
            raise UsageError(f"transformers cannot run this model: {run.error or 'it stopped'}")

    async def _watch(self) -> None:
        """Replace a run whose thread has died. Gives up, and stays unready, after some tries."""
        while True:
            await asyncio.sleep(_WATCH_S)
            if self._is_sound():
                continue
            _log.error("the engine broke; requests aborted: %d", len(self._runs))
            self._restarting = True
            self._abort_runs()
            if not await self._restart():
                _log.critical("the engine stays down")
                return
            self._restarting = False
            _log.warning("the engine runs again")

    def _is_sound(self) -> bool:
        """Whether the run goes on; whoever waits in it without need is let in."""
        try:
            if self._batch is None or not self._batch.is_alive:
                return False
            self._batch.unblock()
        except Exception as error:  # noqa: BLE001 - stock code, which may raise anything
            _log.error("the run cannot be asked: %s", type(error).__name__)
            return False
        return True

    async def _restart(self) -> bool:
        """Start a new run in the place of one that is over; False after too many tries."""
        for attempt in range(1, _MAX_RESTARTS + 1):
            try:
                if self._batch is not None:
                    await asyncio.to_thread(self._batch.stop)
                await self._launch()
                return True
            except Exception as error:  # noqa: BLE001 - nobody else would start the engine again
                _log.error("restart %d failed: %s", attempt, type(error).__name__)
                await asyncio.sleep(_RESTART_S)
        return False

    def _abort_runs(self) -> None:
        for run in self._runs:
            run.abort()


class _Run:
    """One request in the batch: its answers' latest outputs, and a bell for who waits for them.

    error: what the engine said when it failed an answer; never shown for a client's request.
    """

    def __init__(self, request: GenerateRequest, model_end_ids: tuple[int, ...]) -> None:
        self.news = asyncio.Event()
        self.error: str | None = None
        self._request = request
        params = request.sampling_params
        self._end_ids = tuple(dict.fromkeys(model_end_ids + params.stop_token_ids))
        self._states = [
            AnswerState(params, index, request.token_ids, self._end_ids)
            if needs_sampler(params)
            else None
            for index in range(params.n)
        ]
        self._latest: dict[int, Any] = {}
        self._n_sent = [0] * params.n
        self._open = set(range(params.n))
        self._aborted = False
        self._batch: ContinuousBatch | None = None
        self._ids: list[str] = []

    @property
    def is_open(self) -> bool:
        """Whether an answer has not ended yet."""
        return bool(self._open)

    def submit(self, batch: ContinuousBatch, serial: int, max_new_tokens: int) -> None:
        """Queue every answer."""
        self._batch = batch
        self._ids = [f"{serial}.{index}" for index in range(len(self._states))]
        for index, (answer_id, state) in enumerate(zip(self._ids, self._states, strict=True)):
            accepted = batch.submit(
                answer_id,
                self._request.token_ids,
                max_new_tokens=max_new_tokens,
                end_ids=self._end_ids,
                stream=self._request.stream,
                state=state,
                on_output=partial(self._on_output, index),
            )
            if not accepted:
                self.abort()

    def take(self) -> Iterator[Choice]:
        """What is new since the last call."""
        self.news.clear()
        latest, self._latest = self._latest, {}
        for index, output in latest.items():
            if index in self._open:
                yield self._choice(index, output)
        if self._aborted:
            for index in sorted(self._open):
                self._open.discard(index)
                yield Choice(index, (), "abort", logprobs=None if self._plain else ())

    def abort(self) -> None:
        """End all that is open: the engine will report nothing more."""
        self._aborted = True
        self.news.set()

    def close(self) -> None:
        """Take what is left out of the batch."""
        if self._batch is None:
            return
        for index, answer_id in enumerate(self._ids):
            if index in self._open:
                self._batch.cancel(answer_id)
            else:
                self._batch.forget(answer_id)

    @property
    def _plain(self) -> bool:
        return self._request.sampling_params.logprobs is None

    def _on_output(self, index: int, output: Any) -> None:
        self._latest[index] = output
        self.news.set()

    def _choice(self, index: int, output: Any) -> Choice:
        n_sent, state = self._n_sent[index], self._states[index]
        token_ids = tuple(output.generated_tokens[n_sent:])
        self._n_sent[index] += len(token_ids)
        logprobs = None
        if state is not None and not self._plain:
            logprobs = tuple(state.logprobs[n_sent : n_sent + len(token_ids)])
        finish: FinishReason | None = None
        stop_reason = None
        if output.is_finished():
            self._open.discard(index)
            finish = self._finish_reason(output)
            if finish == "stop" and token_ids[-1] in self._request.sampling_params.stop_token_ids:
                stop_reason = token_ids[-1]
        return Choice(index, token_ids, finish, stop_reason, logprobs)

    def _finish_reason(self, output: Any) -> FinishReason:
        if output.error is not None:
            self.error = output.error
            return "abort"
        return "stop" if output.generated_tokens[-1] in self._end_ids else "length"
