"""Requests run together from their first token to their last: one padded batch of `generate`.

Prompts are padded on the left. All rows take as many steps as the longest answer; what a row
yields after its own end is dropped. One `StoppingCriteria` sees every new token, in plain decoding
one a step and in speculative decoding those that were accepted: it ends rows and tells who waits.

The model is used through a shallow copy of its outermost module, so that what is set here (no
defaults from the folder's generation config, and two mends of inputs) never shows in the model
itself, which other engines may share.

Written against transformers 5.23: the copy's `prepare_inputs_for_generation` tells speculative
decoding what a handed cache holds, which the stock code then computes again.

Invariant: each answer's tokens are its own alone: which rows run beside it does not change them,
up to rounding. (8-bit weights round more: see `model_run`.)
"""

from __future__ import annotations

import copy
import functools
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from transformers import GenerationConfig, LogitsProcessor, StoppingCriteria

from veilrun.node.continuous import leave_chosen
from veilrun.node.prefix_cache import PrefixCache
from veilrun.node.sampling import AnswerState, needs_sampler
from veilrun.wire.generate import FinishReason, GenerateRequest

_LOOKUP_TOKENS: Final = 8
_DRAFT_TOKENS: Final = 5
_PAD_ID: Final = 0  # never seen: masked in the prompt, dropped after the end


class Row:
    """One answer while it grows: the engine's thread writes, the event loop reads.

    `token_ids` only grows, and `finish` is set after its last token.
    """

    def __init__(
        self, request: GenerateRequest, index: int, end_ids: Sequence[int], n_new: int
    ) -> None:
        params = request.sampling_params
        self.token_ids: list[int] = []
        self.finish: FinishReason | None = None
        self.state: AnswerState | None = None
        if needs_sampler(params):
            self.state = AnswerState(params, index, request.token_ids, end_ids)
        self.n_new = n_new
        self._end_ids = frozenset(end_ids)

    def extend(self, token_ids: Sequence[int]) -> None:
        """Take the next tokens up to the answer's end, and nothing after it."""
        for token_id in token_ids:
            if self.finish is not None:
                return
            self.token_ids.append(token_id)
            if token_id in self._end_ids:
                self.finish = "stop"
            elif len(self.token_ids) == self.n_new:
                self.finish = "length"


class Job:
    """One request and its rows.

    n_new: the most tokens of each answer. on_news: called on the engine's thread, whenever rows
    have grown.
    """

    def __init__(
        self,
        request: GenerateRequest,
        end_ids: Sequence[int],
        n_new: int,
        on_news: Callable[[], None],
    ) -> None:
        self.request = request
        self.n_new = n_new
        self.rows = [Row(request, i, end_ids, n_new) for i in range(request.sampling_params.n)]
        self.cancelled = threading.Event()
        self.on_news = on_news

    @property
    def is_over(self) -> bool:
        """Whether nobody waits for another token."""
        return self.cancelled.is_set() or all(row.finish is not None for row in self.rows)


@dataclass(frozen=True, slots=True)
class StaticModel:
    """What batches run on.

    longest: positions the model has. lookup: guess tokens from those so far. draft: or by this
    smaller model. prefixes: what earlier prompts left, if that is kept.
    """

    model: Any
    device: torch.device
    longest: int
    kv_cache: bool = True
    lookup: bool = False
    draft: Any = None
    prefixes: PrefixCache | None = None

    def run(self, jobs: Sequence[Job], stopping: threading.Event) -> None:
        """Compute these requests to their end, or to that of who waits. Blocks."""
        rows = [row for job in jobs for row in job.rows]
        alone = rows[0] if len(rows) == 1 else None
        inputs = _padded([job.request.token_ids for job in jobs for _ in job.rows], self.device)
        options: dict[str, Any] = {}
        if alone is not None and alone.state is None:
            if self.lookup:
                options["prompt_lookup_num_tokens"] = _LOOKUP_TOKENS
            elif self.draft is not None:
                options["assistant_model"] = _draft_view(self.draft, self.longest)
        request = jobs[0].request
        prefixes, salt = self.prefixes, request.cache_salt
        kept = None
        if alone is not None and prefixes is not None and salt is not None:
            kept = options["past_key_values"] = prefixes.take(salt, request.token_ids)
        sequences = _view(self.model, self.longest).generate(
            **inputs,
            max_new_tokens=max(row.n_new for row in rows),
            do_sample=False,
            use_cache=self.kv_cache,
            pad_token_id=_PAD_ID,
            logits_processor=[_Chooser(rows)] if any(row.state for row in rows) else [],
            stopping_criteria=[_Watch(jobs, inputs["input_ids"].shape[1], stopping)],
            **options,
        )
        if kept is not None and prefixes is not None and salt is not None:
            prefixes.keep(salt, sequences[0].tolist(), kept)


class _Watch(StoppingCriteria):  # type: ignore[misc] # transformers has no types
    """Hands new tokens to their rows; ends rows that are over, of which nobody wants more."""

    def __init__(self, jobs: Sequence[Job], n_seen: int, stopping: threading.Event) -> None:
        self._jobs, self._n_seen, self._stopping = jobs, n_seen, stopping

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """`input_ids` [R, T] so far -> bool [R]: which rows are over."""
        new = iter(input_ids[:, self._n_seen :].tolist())
        self._n_seen = input_ids.shape[1]
        over: list[bool] = []
        for job in self._jobs:
            was_over = job.is_over
            for row in job.rows:
                row.extend(next(new))
            gone = self._stopping.is_set() or job.cancelled.is_set()
            over += [gone or row.finish is not None for row in job.rows]
            if not was_over:
                job.on_news()
        return torch.tensor(over, device=input_ids.device)


class _Chooser(LogitsProcessor):  # type: ignore[misc] # transformers has no types
    """Chooses for the rows that do not simply take the largest score."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = rows

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """`scores` [R, V] float32, the model's own, then hold one candidate in such rows."""
        states = {
            i: row.state
            for i, row in enumerate(self._rows)
            if row.state is not None and row.finish is None
        }
        return leave_chosen(scores, list(states.items())) if states else scores


def _padded(prompts: Sequence[Sequence[int]], device: torch.device) -> dict[str, torch.Tensor]:
    """Prompts of different lengths -> ids and mask, both int64 [R, T], padding on the left."""
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), _PAD_ID, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, prompt in enumerate(prompts):
        ids[i, width - len(prompt) :] = torch.tensor(prompt)
        mask[i, width - len(prompt) :] = 1
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}


def _view(model: Any, longest: int) -> Any:
    """The same model for one call of `generate`: weights shared, settings its own."""
    view = copy.copy(model)
    view.generation_config = GenerationConfig()
    prepare = model.prepare_inputs_for_generation

    @functools.wraps(prepare)  # generate reads its signature
    def prepare_inputs(
        input_ids: torch.Tensor, next_sequence_length: int | None = None, **given: Any
    ) -> Any:
        past = given.get("past_key_values")
        if given.get("is_first_iteration") and next_sequence_length is None and past is not None:
            next_sequence_length = input_ids.shape[1] - past.get_seq_length()
        inputs = prepare(input_ids, next_sequence_length=next_sequence_length, **given)
        if (positions := inputs.get("position_ids")) is not None:
            # Rows that are over go on beside longer ones, beyond the model's last position.
            inputs["position_ids"] = positions.clamp(max=longest - 1)
        return inputs

    view.prepare_inputs_for_generation = prepare_inputs
    return view


def _draft_view(draft: Any, longest: int) -> Any:
    """A fixed number of guesses: a schedule that learns would carry one request into the next."""
    view = _view(draft, longest)
    view.generation_config = GenerationConfig(
        num_assistant_tokens=_DRAFT_TOKENS,
        num_assistant_tokens_schedule="constant",
        assistant_confidence_threshold=0.0,
    )
    return view
