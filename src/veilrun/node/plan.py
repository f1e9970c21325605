"""How much a continuous-batching run may hold: arithmetic over a model's configuration.

Left to itself the stock cache takes 60 % of a machine's memory and evicts answers when that is
full. Here the size follows from what was asked for, and every admitted answer's pages fit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

from veilrun.errors import UsageError

PAGE_TOKENS: Final = 32
"""Tokens per cache page: an answer wastes half a page on average."""

DEFAULT_MAX_MODEL_LEN: Final = 8192
"""Upper bound of the default length: a model made for 131,072 tokens would ask for gigabytes."""

MAX_ANSWERS_PER_REQUEST: Final = 16


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """Sizes of one run.

    max_model_len: prompt and answer together, in tokens.
    n_pages: pages of `PAGE_TOKENS` tokens in the cache.
    max_batch_tokens: tokens per forward pass; longer prompts are cut into such pieces.
    max_running: answers decoded together.
    """

    max_model_len: int
    n_pages: int
    max_batch_tokens: int
    max_running: int

    @property
    def max_n(self) -> int:
        """Answers per request that fit at full length, so that no request waits for ever."""
        fitting = self.n_pages // pages_for(self.max_model_len)
        return min(MAX_ANSWERS_PER_REQUEST, self.max_running, fitting)


def pages_for(n_tokens: int) -> int:
    """Pages that `n_tokens` of one answer take."""
    return math.ceil(n_tokens / PAGE_TOKENS)


def plan_batches(
    config: Any,
    *,
    itemsize_bytes: int,
    max_running: int,
    max_model_len: int | None,
    max_batch_tokens: int,
    cache_bytes: int,
) -> BatchPlan:
    """Room for `max_running` answers of full length, or for as many as `cache_bytes` hold.

    `cache_bytes` bounds the cache and all that grows with it: the attention mask, the copies of
    keys and values that one layer reads, and their indices. Without `max_model_len`, the length
    is the model's own, up to `DEFAULT_MAX_MODEL_LEN` and to what fits.

    Raises:
        UsageError: `max_model_len` is more than the model or `cache_bytes` can hold.
    """
    max_batch_tokens = max(max_batch_tokens, max_running)
    page_bytes = PAGE_TOKENS * _token_bytes(config, itemsize_bytes, max_batch_tokens)
    n_affordable = cache_bytes // page_bytes
    longest: int = getattr(config, "max_position_embeddings", None) or DEFAULT_MAX_MODEL_LEN
    if max_model_len is None:
        max_model_len = min(longest, DEFAULT_MAX_MODEL_LEN, max(n_affordable, 1) * PAGE_TOKENS)
    if not 2 <= max_model_len <= longest:
        raise UsageError(
            f"a maximum length of {max_model_len} tokens does not suit this model: from 2 to "
            f"{longest}"
        )
    n_per_answer = pages_for(max_model_len)
    if n_affordable < n_per_answer:
        raise UsageError(
            f"a cache of {cache_bytes} bytes holds {n_affordable * PAGE_TOKENS} tokens, fewer than "
            f"the {max_model_len} of one full answer; give it {n_per_answer * page_bytes} bytes, "
            "or a lower maximum length"
        )
    n_pages = min(max_running * n_per_answer, n_affordable)
    return BatchPlan(max_model_len, n_pages, max_batch_tokens, max_running)


def _token_bytes(config: Any, itemsize_bytes: int, max_batch_tokens: int) -> int:
    """What one cached token costs: keys and values, its copies while read, its mask column."""
    n_heads = config.num_attention_heads
    n_kv_heads = getattr(config, "num_key_value_heads", None) or n_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // n_heads
    kept = 2 * config.num_hidden_layers * n_kv_heads * head_dim
    copied = (2 * n_heads + n_kv_heads) * head_dim
    index_bytes = 8
    return int((kept + copied + max_batch_tokens) * itemsize_bytes + index_bytes)
