"""The middle of a model on transformers: rows of the residual stream in, final states out.

Each session has a cache of keys and values. One thread does all the work, one request at a time:
sessions are not computed together, so this engine is for few users. A session that is idle for
too long is forgotten when somebody else wants its place, or with the next request.

Invariant: sessions share nothing but the weights, and their number and length are bounded, so
their caches fit into `cache_bytes`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import torch
import transformers

from veilrun.errors import BusyError, UsageError
from veilrun.node import loading
from veilrun.node.middle_server import SessionLost
from veilrun.node.plan import plan_batches
from veilrun.node.transformers_engine import TransformersSettings
from veilrun.wire.middle import Extend, Rows

IDLE_S: Final = 300.0
"""A client that thinks for longer than this sends its text again."""

_RETRY_S: Final = 5.0
_PIECE_ROWS: Final = 512

T = TypeVar("T")


@dataclass(slots=True)
class _Session:
    """n_rows: what its cache holds. used_s: when it was last asked."""

    cache: Any
    n_rows: int
    used_s: float


class MiddleEngine:
    """Serves one folder of safetensors weights without embedding and head."""

    name = "transformers-middle"

    def __init__(
        self, folder: Path, settings: TransformersSettings | None = None, idle_s: float = IDLE_S
    ) -> None:
        """Read the configuration only, and plan the memory.

        Raises:
            UsageError: settings that do not suit the model; CheckpointError: no readable config.
        """
        settings = settings or TransformersSettings()
        self._folder, self._idle_s = folder, idle_s
        self._device = loading.choose_device(settings.device)
        config = loading.load_config(folder).get_text_config()
        self._dtype = loading.choose_dtype(settings.dtype, self._device, config)
        plan = plan_batches(
            config,
            itemsize_bytes=self._dtype.itemsize,
            max_running=settings.max_running,
            max_model_len=settings.max_model_len,
            max_batch_tokens=_PIECE_ROWS,
            cache_bytes=settings.cache_bytes or loading.default_cache_bytes(folder, self._device),
        )
        self.hidden: int = config.hidden_size
        self.max_model_len = plan.max_model_len
        self._max_sessions = plan.max_n
        self._sessions: dict[str, _Session] = {}
        self._model: Any = None
        self._thread = ThreadPoolExecutor(1, "middle")

    @property
    def ready(self) -> bool:
        """Whether it can answer now."""
        return self._model is not None

    @property
    def n_sessions(self) -> int:
        """Sessions that are remembered."""
        return len(self._sessions)

    async def start(self) -> None:
        """Load the model.

        Raises:
            CheckpointError: weights are missing, damaged, or not safetensors.
        """
        self._model = await self._do(
            lambda: loading.load_middle(self._folder, self._device, self._dtype)
        )

    async def stop(self) -> None:
        """Free the model and forget all sessions."""
        self._model = None
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._sessions.clear()

    async def extend(self, request: Extend) -> Rows:
        """Add rows to a session; the last `n_states` final states, float32.

        Raises:
            SessionLost: the session is not here, or not as long as the request says.
            UsageError: it would get too long. BusyError: there is no room for one more.
        """
        return await self._do(lambda: self._extend(request))

    async def end(self, session: str) -> None:
        """Forget a session."""
        await self._do(lambda: self._sessions.pop(session, None))

    async def _do(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    # --- on the thread --------------------------------------------------------------------

    def _extend(self, request: Extend) -> Rows:
        session = self._session(request)
        if request.position + len(request.rows) > self.max_model_len:
            raise UsageError(f"a session holds at most {self.max_model_len} rows")
        # Whatever goes wrong leaves no half-extended session behind.
        del self._sessions[request.session]
        states = self._forward(request, session.cache)
        session.n_rows += len(request.rows)
        session.used_s = time.monotonic()
        self._sessions[request.session] = session
        return states

    def _session(self, request: Extend) -> _Session:
        now_s = time.monotonic()
        for name, one in list(self._sessions.items()):
            if now_s - one.used_s > self._idle_s:
                del self._sessions[name]
        known = self._sessions.get(request.session)
        if known is not None and known.n_rows == request.position:
            return known
        if known is not None or request.position:
            raise SessionLost("the session is not here, or not as long as that")
        if len(self._sessions) >= self._max_sessions:
            raise BusyError("all sessions are taken", _RETRY_S)
        fresh = _Session(transformers.DynamicCache(config=self._model.config), 0, now_s)
        self._sessions[request.session] = fresh
        return fresh

    def _forward(self, request: Extend, cache: Any) -> Rows:
        n_states = request.n_states
        states: list[torch.Tensor] = []
        with torch.inference_mode():
            rows = torch.from_numpy(request.rows.copy()).to(self._device, self._dtype)
            for piece in torch.split(rows, _PIECE_ROWS):
                made = self._model(inputs_embeds=piece[None], past_key_values=cache, use_cache=True)
                states.append(made.last_hidden_state[0])
            wanted = torch.cat(states)[len(rows) - n_states :]
            result: Rows = wanted.float().cpu().numpy()
        return result
