"""The memory plan: what was asked for, or what fits, or a refusal."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from veilrun.errors import UsageError
from veilrun.node.plan import DEFAULT_MAX_MODEL_LEN, PAGE_TOKENS, pages_for, plan_batches

CONFIG = SimpleNamespace(
    num_hidden_layers=10,
    num_attention_heads=8,
    num_key_value_heads=2,
    head_dim=64,
    hidden_size=512,
    max_position_embeddings=1000,
)
TOKEN_BYTES = (2 * 10 * 2 * 64 + (2 * 8 + 2) * 64 + 512) * 4 + 8


def plan(config: Any = CONFIG, **changes: Any) -> Any:
    sizes = {
        "itemsize_bytes": 4,
        "max_running": 4,
        "max_model_len": None,
        "max_batch_tokens": 512,
        "cache_bytes": 2**31,
    }
    return plan_batches(config, **(sizes | changes))


def test_every_answer_fits_at_full_length() -> None:
    assert plan().max_model_len == 1000
    assert plan().n_pages == 4 * pages_for(1000)
    assert plan().max_n == 4


def test_cache_bytes_bound_the_pages() -> None:
    for n_pages in (32, 50, 90):
        bounded = plan(cache_bytes=n_pages * PAGE_TOKENS * TOKEN_BYTES)
        assert bounded.n_pages == n_pages
        assert bounded.max_n == n_pages // pages_for(1000)


def test_length_shrinks_to_what_fits_unless_it_was_asked_for() -> None:
    small = 3 * PAGE_TOKENS * TOKEN_BYTES
    assert plan(cache_bytes=small).max_model_len == 3 * PAGE_TOKENS
    with pytest.raises(UsageError, match="holds 96 tokens, fewer than the 97"):
        plan(cache_bytes=small, max_model_len=97)


def test_long_models_are_capped_by_default_only() -> None:
    long = SimpleNamespace(**{**vars(CONFIG), "max_position_embeddings": 131072})
    assert plan(long).max_model_len == DEFAULT_MAX_MODEL_LEN
    assert plan(long, max_model_len=20_000, cache_bytes=2**34).max_model_len == 20_000


@pytest.mark.parametrize("length", [0, 1, 1001])
def test_lengths_that_the_model_cannot_hold_are_usage_errors(length: int) -> None:
    with pytest.raises(UsageError, match="does not suit this model"):
        plan(max_model_len=length)


def test_no_memory_at_all_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="holds 0 tokens"):
        plan(cache_bytes=10)


def test_a_batch_has_a_token_for_every_answer() -> None:
    assert plan(max_running=2000, cache_bytes=2**40).max_batch_tokens == 2000


def test_full_attention_without_the_optional_fields() -> None:
    old = SimpleNamespace(num_hidden_layers=2, num_attention_heads=4, hidden_size=32)
    assert plan(old).max_model_len == DEFAULT_MAX_MODEL_LEN
