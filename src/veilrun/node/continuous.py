"""One run of transformers' continuous batching: a thread that decodes all answers together.

What it adds to the stock run: a memory plan (left alone on a CPU, the cache takes 60 % of the
machine), sampling per answer, and cancelling that forgets the answer everywhere. Prefix
sharing stays off: its cache has no salt, so one user could time another's prompts. Flash
attention is never fetched: it would come from a hub, as code.

Written against transformers 5.23. The two places it holds on to that are not public there are
`logit_processor`, replaced before the run starts, and `output_router.result_handlers`, where
cancelled answers would stay for ever.

Invariant: reading and writing go through methods that any thread may call; an answer that was
cancelled is never reported again.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig

from veilrun.node.plan import PAGE_TOKENS, BatchPlan
from veilrun.node.sampling import AnswerState, sample

# At warning level the stock run writes token ids into its log.
logging.getLogger("ContinuousBatchingLogger").setLevel(logging.ERROR)


class ContinuousBatch:
    """A started run over a loaded model. Build, `start`, then `submit` and `cancel`, then `stop`.

    `on_thread` is called once on the run's thread, before its first batch. `start` and `submit`
    are called on the event loop that shall get the outputs.
    """

    def __init__(self, model: Any, plan: BatchPlan, on_thread: Callable[[], None]) -> None:
        self._stop_lock = threading.Lock()
        self._stopped = False
        self._sampler = _BatchSampler(on_thread)
        self._manager = model.init_continuous_batching(
            # Greedy to the stock code; the sampler leaves it one candidate where it chose.
            generation_config=GenerationConfig(do_sample=False, eos_token_id=-1),
            continuous_batching_config=ContinuousBatchingConfig(
                page_size=PAGE_TOKENS,
                num_blocks=plan.n_pages,
                max_batch_tokens=plan.max_batch_tokens,
                max_requests_per_batch=plan.max_running,
                max_blocks_per_request=0,
                allow_block_sharing=False,
                auto_switch_to_flash=False,
                # The sampler is ordinary code between two steps: no graphs, no overlap.
                use_cuda_graph=False,
                use_async_batching=False,
                # Admission reserves every answer's pages, so no share must stay free.
                safety_margin=0.0,
            ),
        )
        self._manager.logit_processor = self._sampler

    def start(self) -> None:
        """Start the thread. It must be stopped: the process does not end while it runs."""
        self._manager.start()

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs and takes answers: no error has ended it, nobody stops it."""
        refusal = self._manager.background_thread_status.can_accept_new_requests()
        return bool(self._manager.is_running()) and refusal is None

    def submit(
        self,
        answer_id: str,
        token_ids: Sequence[int],
        *,
        max_new_tokens: int,
        end_ids: Sequence[int],
        stream: bool,
        state: AnswerState | None,
        on_output: Callable[[Any], None],
    ) -> bool:
        """Queue one answer; False if the run is over and nothing will come.

        `on_output` gets a `GenerationOutput` on the event loop: after every token if `stream`,
        else once. Its tokens are all since the beginning. Outputs of one step come together.
        """
        if state is not None:
            self._sampler.answers[answer_id] = state
        self._manager.register_result_handler(answer_id, on_output)
        accepted = self._manager.add_request(
            token_ids,
            request_id=answer_id,
            max_new_tokens=max_new_tokens,
            streaming=stream,
            eos_token_id=list(end_ids),  # an empty list: no end id at all
        )
        if accepted is None:
            self.forget(answer_id)
        return accepted is not None

    def cancel(self, answer_id: str) -> None:
        """Stop an answer. Its cache is free before the next answer is scheduled."""
        self._manager.cancel_request(answer_id)
        self.forget(answer_id)

    def forget(self, answer_id: str) -> None:
        """Drop what is kept for an answer that has ended."""
        self._sampler.answers.pop(answer_id, None)
        self._manager.output_router.result_handlers.pop(answer_id, None)

    def unblock(self) -> None:
        """Let waiting answers in again if nothing else runs.

        After an eviction the stock scheduler admits nobody until some answer finishes; if the
        last one that runs is cancelled instead, everyone waits for ever. Reservations make
        evictions rare: only models that mix kinds of attention still have them.
        """
        processor = self._manager.batch_processor
        if processor is not None and not processor.scheduler.active_requests:
            processor.scheduler.block_new_requests = False

    def n_active(self) -> int:
        """Answers the run holds now, waiting or decoding. For tests and metrics."""
        processor = self._manager.batch_processor
        if processor is None:
            return 0
        scheduler = processor.scheduler
        return len(scheduler.active_requests) + len(scheduler.waiting_requests)

    def stop(self) -> None:
        """End the thread after its current step; answers still running are reported as failed.

        Blocks until then. Calling it again, from any thread, does nothing.
        """
        with self._stop_lock:
            if not self._stopped:
                self._manager.stop(block=True, hard_stop=True)
            self._stopped = True


class _BatchSampler:
    """Stands where the stock run keeps its logits processors, and knows whose each row is.

    `prepare_tensor_args` comes before every forward pass with the batch in row order: answers
    whose prompt is still being read have no row, and rows after the last are padding. Then
    `__call__` gets the scores. Both run on the batch's thread.
    """

    tensors_required = 0

    def __init__(self, on_thread: Callable[[], None]) -> None:
        self.answers: dict[str, AnswerState] = {}
        self._on_thread: Callable[[], None] | None = on_thread
        self._rows: list[tuple[int, AnswerState]] = []

    @property
    def do_processing(self) -> bool:
        """Whether this batch needs `__call__` at all; plain greedy batches do not."""
        return bool(self._rows)

    def check_kwargs(self, kwargs: dict[str, Any]) -> None:
        """No per-request keywords: parameters are looked up by answer."""

    def fill_defaults(self, tensor: torch.Tensor) -> None:
        """No tensor arguments, so no defaults."""

    def prepare_tensor_args(self, requests_in_batch: list[Any], arg_storage: torch.Tensor) -> None:
        """Note which rows of the coming batch are whose."""
        if self._on_thread is not None:
            self._on_thread()
            self._on_thread = None
        self._rows = []
        if not self.answers:
            return
        ids = [one.state.request_id for one in requests_in_batch if one.has_new_token]
        states = map(self.answers.get, ids)
        self._rows = [(row, state) for row, state in enumerate(states) if state is not None]

    def __call__(
        self, input_ids: torch.Tensor, scores: torch.Tensor, args: torch.Tensor
    ) -> torch.Tensor:
        """Choose for the rows that need it; `scores` [R, V] then hold one candidate there."""
        return leave_chosen(scores, self._rows)


def leave_chosen(scores: torch.Tensor, answers: Sequence[tuple[int, AnswerState]]) -> torch.Tensor:
    """Choose for these rows of `scores` ([R, V] float32), and leave them one candidate each."""
    rows = torch.tensor([row for row, _ in answers], device=scores.device)
    tokens = sample(scores[rows], [state for _, state in answers])
    scores.index_fill_(0, rows, -math.inf)
    scores[rows, torch.tensor(tokens, device=scores.device)] = 0.0
    return scores
