"""The thread of the static engine, and each request as seen from the event loop.

What crosses between the two: a request goes over when it is queued; its rows grow on the thread
and are read on the loop, which is told by a bell; `cancelled` is set on the loop and seen by the
thread at its next step.

Invariant: whatever happens on the thread, every request it took or refused is told so.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Final

from veilrun.node.model_run import ModelRun
from veilrun.node.static_batch import Job, StaticModel
from veilrun.wire.generate import Choice, GenerateRequest

_log = logging.getLogger(__name__)

_GATHER_S: Final = 0.003
"""How long a batch waits for company: requests sent together arrive a little apart."""

_MAX_FAILURES: Final = 3


class StaticRun:
    """One request in the engine as the event loop sees it, and a bell for who waits for it."""

    def __init__(
        self, request: GenerateRequest, model_end_ids: tuple[int, ...], n_new: int
    ) -> None:
        self.news = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._params = request.sampling_params
        end_ids = tuple(dict.fromkeys(model_end_ids + self._params.stop_token_ids))
        self.job = Job(request, end_ids, n_new, self._on_news)
        self._streams = request.stream
        self._n_sent = [0] * len(self.job.rows)
        self._open = set(range(len(self.job.rows)))
        self._aborted = False

    @property
    def is_open(self) -> bool:
        """Whether an answer has not ended yet."""
        return bool(self._open)

    def ring(self) -> None:
        """Wake who waits. For any thread."""
        self._loop.call_soon_threadsafe(self.news.set)

    def abort_from_thread(self) -> None:
        """End all that is open. For the engine's thread."""
        self._loop.call_soon_threadsafe(self.abort)

    def abort(self) -> None:
        """End all that is open: the engine will report nothing more."""
        self._aborted = True
        self.news.set()

    def take(self) -> Iterator[Choice]:
        """What is new since the last call."""
        self.news.clear()
        aborted = self._aborted
        for index in sorted(self._open):
            row = self.job.rows[index]
            finish = row.finish or ("abort" if aborted else None)
            begin, end = self._n_sent[index], len(row.token_ids)
            if finish is None and (begin == end or not self._streams):
                continue
            self._n_sent[index] = end
            token_ids = tuple(row.token_ids[begin:end])
            logprobs = None
            if self._params.logprobs is not None:
                logprobs = tuple(row.state.logprobs[begin:end]) if row.state else ()
            stop_reason = None
            if finish is not None:
                self._open.discard(index)
                if finish == "stop" and token_ids[-1] in self._params.stop_token_ids:
                    stop_reason = token_ids[-1]
            yield Choice(index, token_ids, finish, stop_reason, logprobs)

    def _on_news(self) -> None:
        if self._streams or any(row.finish for row in self.job.rows):
            self.ring()


class StaticWorker:
    """The thread that runs the model, and the requests that wait for it."""

    def __init__(
        self, model: StaticModel, run: ModelRun, max_running: int, n_room_tokens: int
    ) -> None:
        self.last_error: Exception | None = None
        self.model, self._model_run = model, run
        self._max_running, self._n_room_tokens = max_running, n_room_tokens
        self._waiting: deque[StaticRun] = deque()
        self._bell = threading.Condition()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name="static-engine", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether the thread takes requests."""
        return self._thread.is_alive() and not self._stopping.is_set()

    def submit(self, run: StaticRun) -> None:
        """Queue a request. On the event loop."""
        with self._bell:
            if self._stopping.is_set():
                run.abort()
                return
            self._waiting.append(run)
            self._bell.notify()

    def stop(self) -> None:
        """End the thread after its current step. Blocks until then; waiting requests are left."""
        with self._bell:
            self._stopping.set()
            self._bell.notify()
        self._thread.join()

    def _work(self) -> None:
        self._model_run.use_threads()
        n_failures = 0
        while batch := self._next_batch():
            try:
                self.model.run([run.job for run in batch], self._stopping)
                n_failures, self.last_error = 0, None
            except Exception as error:  # noqa: BLE001 - stock code, which may raise anything
                _log.error("a batch failed: %s; requests: %d", type(error).__name__, len(batch))
                # Without its frames: they hold the batch.
                n_failures, self.last_error = n_failures + 1, error.with_traceback(None)
            for run in batch:
                run.abort_from_thread()  # of what ended well, nothing is open
            if n_failures == _MAX_FAILURES:
                _log.critical("the engine stays down")
                break
        self._give_up()

    def _give_up(self) -> None:
        with self._bell:
            self._stopping.set()
            for run in self._waiting:
                run.abort_from_thread()
            self._waiting.clear()

    def _next_batch(self) -> list[StaticRun]:
        """The next requests, in order, as many as fit; empty: stop."""
        batch: list[StaticRun] = []
        while not batch:
            with self._bell:
                self._bell.wait_for(lambda: self._waiting or self._stopping.is_set())
            if len(self._waiting) < self._max_running > 1:
                time.sleep(_GATHER_S)
            with self._bell:
                if self._stopping.is_set():
                    break
                self._fill(batch)
        return batch

    def _fill(self, batch: list[StaticRun]) -> None:
        """Move waiting requests into the batch; those that nobody waits for are dropped."""
        n_rows = n_prompt = n_new = 0
        while self._waiting and len(batch) < self._max_running:
            job = self._waiting[0].job
            if not job.cancelled.is_set():
                n_rows += len(job.rows)
                n_prompt = max(n_prompt, len(job.request.token_ids))
                n_new = max(n_new, job.n_new)
                if batch and n_rows * (n_prompt + n_new) > self._n_room_tokens:
                    return
                batch.append(self._waiting[0])
            self._waiting.popleft()
