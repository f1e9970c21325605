"""The built-in engine for one batch at a time: what waits is run together, to its end.

Where continuous batching lets requests in and out between tokens, this engine takes up to
`max_running` requests, computes them as one padded batch (`static_batch`), and then the next.
So it can do what needs a request alone: guess tokens ahead, and go on from what earlier prompts
of the same salt left (`prefix_cache`). A request with several answers is not alone.

The model runs on a thread of its own, which takes requests in the order they came; everything
else runs on the event loop. An error on the thread ends its batch's requests with finish_reason
"abort"; after a few in a row the engine stays unready.

Invariant: a batch's keys and values fit into the planned cache, padding included, and the weights
come from safetensors alone: no pickle, no code from the checkpoint.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from veilrun.errors import BusyError, UsageError
from veilrun.node import loading, model_run
from veilrun.node.engine import EngineLimits
from veilrun.node.model_run import Loader, ModelRun
from veilrun.node.plan import (
    DEFAULT_MAX_MODEL_LEN,
    MAX_ANSWERS_PER_REQUEST,
    PAGE_TOKENS,
    plan_batches,
)
from veilrun.node.prefix_cache import PrefixCache
from veilrun.node.static_batch import StaticModel
from veilrun.node.static_worker import StaticRun, StaticWorker
from veilrun.tune.arms import Speculation
from veilrun.wire.generate import Choice, GenerateRequest, SamplingParams

_RETRY_S: Final = 2.0
_FIRST_TOKENS: Final = 3  # of the answer that proves the engine, and of its prompt


@dataclass(frozen=True, slots=True)
class StaticSettings:
    """How to run the model.

    max_running: requests computed together.
    max_model_len: prompt and answer together, in tokens; None: the model's own, up to 8192.
    prefix_cache: keep what prompts began with, per salt; requests without a salt have no part in
        it. It takes up to half as much memory again as running requests do.
    speculation: guess tokens ahead for greedy requests with one answer: by n-grams, or with
        `draft`, the folder of a smaller model with the same vocabulary (under the same key).
    kv_cache: keep keys and values of past tokens; without, all are computed again each token.
    """

    max_running: int = 1
    max_model_len: int | None = None
    prefix_cache: bool = False
    speculation: Speculation = "none"
    draft: Path | None = None
    kv_cache: bool = True
    run: ModelRun = field(default_factory=ModelRun)

    def __post_init__(self) -> None:
        if self.max_running < 1:
            raise UsageError(f"{self.max_running} requests at a time are none; give 1 or more")
        if self.prefix_cache and self.max_running > 1:
            raise UsageError("a prefix cache takes requests one by one: set max_running to 1")
        if not self.kv_cache and (self.prefix_cache or self.speculation != "none"):
            raise UsageError("a prefix cache and guessing ahead need kept keys and values")
        if (self.speculation == "draft") != (self.draft is not None):
            raise UsageError("a draft model and guessing ahead with one go together: name both")


class StaticEngine:
    """Serves one folder of safetensors weights; see `node.engine.Engine`."""

    name = "transformers-static"

    def __init__(
        self, folder: Path, settings: StaticSettings | None = None, load: Loader | None = None
    ) -> None:
        """Read the configuration only, and plan the memory.

        Raises:
            UsageError: settings that do not suit the model; CheckpointError: no readable config.
        """
        self._settings = settings or StaticSettings()
        self._folder, self._load = folder, load
        run = self._settings.run
        self._config = loading.load_config(folder).get_text_config()
        self._device, dtype = run.place(self._config)
        cache_bytes = loading.default_cache_bytes(folder, self._device)
        self._longest: int = (
            getattr(self._config, "max_position_embeddings", None) or DEFAULT_MAX_MODEL_LEN
        )
        # A whole prompt is read at once; plain attention holds a table of scores per head.
        at_once = min(self._settings.max_model_len or DEFAULT_MAX_MODEL_LEN, self._longest)
        n_tables = 1 if run.attention == "sdpa" else self._config.num_attention_heads
        plan = plan_batches(
            self._config,
            itemsize_bytes=dtype.itemsize,
            max_running=max(self._settings.max_running, MAX_ANSWERS_PER_REQUEST),
            max_model_len=self._settings.max_model_len,
            max_batch_tokens=at_once * n_tables,
            cache_bytes=cache_bytes,
        )
        self.limits = EngineLimits(self._config.vocab_size, plan.max_model_len, plan.max_n)
        self._n_room_tokens = plan.n_pages * PAGE_TOKENS
        self._prefix_bytes = cache_bytes // 2
        self._end_ids: tuple[int, ...] = ()
        self._runs: set[StaticRun] = set()
        self._worker: StaticWorker | None = None

    @property
    def ready(self) -> bool:
        """Whether it can answer now."""
        return self._worker is not None and self._worker.is_alive

    @property
    def n_active(self) -> int:
        """Answers that wait or are computed at this moment."""
        return sum(len(run.job.rows) for run in self._runs)

    @property
    def prefixes(self) -> PrefixCache | None:
        """What earlier prompts left; None if that is not kept, and while it does not run."""
        return self._worker.model.prefixes if self._worker is not None else None

    async def start(self) -> None:
        """Load the model and let it answer once.

        Raises:
            CheckpointError: weights are missing, damaged, or not safetensors.
            UsageError: the settings do not suit the model or this machine.
        """
        await self.stop()
        model = await asyncio.to_thread(self._load_model)
        self._end_ids = loading.end_ids(model.model)
        self._worker = StaticWorker(
            model, self._settings.run, self._settings.max_running, self._n_room_tokens
        )
        try:
            await self._prove(self._worker)
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Free the model. Requests still running end with finish_reason "abort"."""
        worker, self._worker = self._worker, None
        if worker is not None:
            await asyncio.to_thread(worker.stop)
        for run in self._runs:
            run.abort()

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Choice]:
        """Yield each answer's next tokens; see `node.engine.Engine.generate`."""
        worker = self._worker
        if worker is None or not worker.is_alive:
            raise BusyError("the engine is starting or stopping", _RETRY_S)
        params = request.sampling_params
        n_new = min(params.max_tokens, self.limits.max_model_len - len(request.token_ids))
        model_end_ids = () if params.ignore_eos else self._end_ids
        run = StaticRun(request, model_end_ids, n_new)
        self._runs.add(run)
        try:
            worker.submit(run)
            while run.is_open:
                await run.news.wait()
                for choice in run.take():
                    yield choice
        finally:
            self._runs.discard(run)
            run.job.cancelled.set()

    def _load_model(self) -> StaticModel:
        settings, prefixes, draft = self._settings, None, None
        if settings.prefix_cache:
            prefixes = PrefixCache(self._config, self._prefix_bytes)
        if settings.draft is not None:
            draft = self._load_draft(settings.draft)
        return StaticModel(
            model_run.take(self._folder, settings.run, self._load),
            self._device,
            self._longest,
            kv_cache=settings.kv_cache,
            lookup=settings.speculation == "prompt-lookup",
            draft=draft,
            prefixes=prefixes,
        )

    def _load_draft(self, folder: Path) -> Any:
        config = loading.load_config(folder).get_text_config()
        if config.vocab_size != self._config.vocab_size:
            raise UsageError(
                f"the draft's vocabulary has {config.vocab_size} ids and the model's "
                f"{self._config.vocab_size}; a draft guesses in the model's own vocabulary"
            )
        longest = getattr(config, "max_position_embeddings", None)
        if longest is not None and longest < self.limits.max_model_len:
            raise UsageError(
                f"the draft reads up to {longest} tokens, fewer than the maximum length of "
                f"{self.limits.max_model_len}; take another draft or lower that"
            )
        return model_run.take(folder, replace(self._settings.run, compiled=False), None)

    async def _prove(self, worker: StaticWorker) -> None:
        """Answer one request, so that what cannot work fails here and what is compiled is ready.

        Several tokens each: torch.compile makes code of its own for a single one.
        """
        n_prompt = min(_FIRST_TOKENS, self.limits.max_model_len - 1)
        n_new = min(_FIRST_TOKENS, self.limits.max_model_len - n_prompt)
        request = GenerateRequest((0,) * n_prompt, SamplingParams(temperature=0.0))
        run = StaticRun(request, (), n_new)
        worker.submit(run)
        while run.is_open:
            await run.news.wait()
            list(run.take())
        if (error := worker.last_error) is None:
            return
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        if self._settings.run.compiled:
            raise UsageError(
                f"torch.compile does not work here: {reason}; it needs a C++ compiler (g++ or "
                "clang++) on the PATH"
            ) from error
        raise UsageError(f"transformers cannot run this model: {reason}") from error
