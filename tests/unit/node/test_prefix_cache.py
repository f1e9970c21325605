"""The prefix cache: right answers, and nothing shared between salts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import models
import pytest
import torch
import transformers

from unit.node.subjects import GREEDY, collect, plain_greedy, plain_model, write_tiny_llama
from veilrun.errors import UsageError
from veilrun.node.prefix_cache import MIN_SHARED_TOKENS, PrefixCache
from veilrun.node.static_engine import StaticEngine, StaticSettings
from veilrun.wire.generate import GenerateRequest, SamplingParams

CONFIG = models.CONFIGS["llama"]()
SHARED_PROMPT = tuple(3 + (7 * i) % 90 for i in range(40))


def filled(n_tokens: int, value: float = 1.0) -> Any:
    cache = transformers.DynamicCache(config=CONFIG)
    for index in range(CONFIG.num_hidden_layers):
        states = torch.full((1, 2, n_tokens, 12), value)
        cache.update(states, states, index)
    return cache


BYTES_PER_TOKEN = 2 * 2 * 12 * 4 * CONFIG.num_hidden_layers


def test_the_longest_common_beginning_is_handed_out() -> None:
    prefixes = PrefixCache(CONFIG, 10**6)
    prefixes.keep("a", range(30), filled(30, 1.0))
    prefixes.keep("a", [*range(20), 99, *range(21, 50)], filled(50, 2.0))
    found = prefixes.take("a", [*range(25), 77])
    assert found.get_seq_length() == 25
    assert found.layers[0].keys.eq(1.0).all()
    assert prefixes.take("a", [*range(20), 99, 5]).layers[1].values.eq(2.0).all()
    assert (prefixes.n_hits, prefixes.n_misses) == (2, 0)


def test_the_last_token_is_always_left_to_compute() -> None:
    prefixes = PrefixCache(CONFIG, 10**6)
    prefixes.keep("a", range(30), filled(30))
    assert prefixes.take("a", range(30)).get_seq_length() == 29
    assert prefixes.take("a", range(17)).get_seq_length() == 16
    assert prefixes.take("a", range(16)).get_seq_length() == 0


def test_short_beginnings_are_not_worth_it() -> None:
    prefixes = PrefixCache(CONFIG, 10**6)
    prefixes.keep("a", range(MIN_SHARED_TOKENS - 1), filled(MIN_SHARED_TOKENS - 1))
    assert prefixes.n_bytes == 0
    prefixes.keep("a", range(30), filled(30))
    assert prefixes.take("a", [*range(15), 80, 81, 82]).get_seq_length() == 0
    assert prefixes.n_misses == 1


def test_salts_share_nothing() -> None:
    prefixes = PrefixCache(CONFIG, 10**6)
    prefixes.keep("a", range(30), filled(30, 1.0))
    assert prefixes.take("b", range(30)).get_seq_length() == 0
    prefixes.keep("b", range(30), filled(30, 2.0))
    assert prefixes.take("a", range(30)).layers[0].keys.eq(1.0).all()
    assert prefixes.take("b", range(30)).layers[0].keys.eq(2.0).all()
    taken = [prefixes.take(salt, range(30)) for salt in ("a", "b", "a")]
    caches = [*taken, *(entry.cache for entry in prefixes._entries.values())]
    storages = [
        layer.keys.untyped_storage().data_ptr() for cache in caches for layer in cache.layers
    ]
    assert len(set(storages)) == len(storages) == 5 * CONFIG.num_hidden_layers


def test_what_is_handed_out_can_be_changed_freely() -> None:
    prefixes = PrefixCache(CONFIG, 10**6)
    prefixes.keep("a", range(30), filled(30, 1.0))
    taken = prefixes.take("a", range(40))
    taken.layers[0].keys.zero_()
    taken.crop(-10)
    again = prefixes.take("a", range(40))
    assert again.get_seq_length() == 30
    assert again.layers[0].keys.eq(1.0).all()


def test_one_that_holds_another_takes_its_place() -> None:
    prefixes = PrefixCache(CONFIG, 10**6)
    prefixes.keep("a", range(30), filled(30))
    prefixes.keep("a", range(50), filled(50))
    assert prefixes.n_bytes == 50 * BYTES_PER_TOKEN
    prefixes.keep("a", range(40), filled(40))
    assert prefixes.n_bytes == 50 * BYTES_PER_TOKEN
    prefixes.keep("b", range(50), filled(50))
    assert prefixes.n_bytes == 100 * BYTES_PER_TOKEN


def test_the_least_recently_used_goes_first() -> None:
    prefixes = PrefixCache(CONFIG, 100 * BYTES_PER_TOKEN)
    prefixes.keep("a", range(30), filled(30))
    prefixes.keep("b", range(30), filled(30))
    prefixes.keep("c", range(30), filled(30))
    assert prefixes.take("a", range(30)).get_seq_length() == 29
    prefixes.keep("d", range(30), filled(30))
    assert prefixes.n_bytes == 90 * BYTES_PER_TOKEN
    held = {salt: prefixes.take(salt, range(30)).get_seq_length() > 0 for salt in "abcd"}
    assert held == {"a": True, "b": False, "c": True, "d": True}
    prefixes.keep("e", range(200), filled(200))  # larger than everything
    assert prefixes.take("e", range(30)).get_seq_length() == 0
    assert set(prefixes._keys) == {"a", "c", "d"}


@pytest.mark.parametrize("name", ["mistral-sliding", "gemma2", "qwen2-tied-sliding"])
async def test_models_that_forget_old_tokens_are_refused(tmp_path: Path, name: str) -> None:
    models.save_random(name, tmp_path)
    engine = StaticEngine(tmp_path, StaticSettings(prefix_cache=True))
    with pytest.raises(UsageError, match=r"full attention.*DynamicSlidingWindowLayer"):
        await engine.start()
    assert not engine.ready


@pytest.mark.parametrize("speculation", ["none", "prompt-lookup", "draft"])
async def test_answers_are_the_same_with_and_without(tmp_path: Path, speculation: Any) -> None:
    folder = write_tiny_llama(tmp_path / "model")
    plain = plain_model(folder)
    draft = write_tiny_llama(tmp_path / "draft", seed=3) if speculation == "draft" else None
    settings = StaticSettings(prefix_cache=True, speculation=speculation, draft=draft)
    engine = StaticEngine(folder, settings)
    await engine.start()
    prefixes = prefixes_of(engine)
    try:
        prompts = [SHARED_PROMPT, (*SHARED_PROMPT, 5, 5, 8), (*SHARED_PROMPT, 5, 5, 9, 10)]
        prompts += [SHARED_PROMPT[:20], SHARED_PROMPT]
        for prompt in prompts:
            request = GenerateRequest(prompt, replace(GREEDY, max_tokens=40), cache_salt="a")
            answer = (await collect(engine, request))[0]
            assert list(answer.token_ids) == plain_greedy(plain, prompt, 40)
        assert (prefixes.n_hits, prefixes.n_misses) == (4, 1)
        # A conversation: the next prompt begins with the last prompt and its answer.
        longer = (*SHARED_PROMPT, *answer.token_ids, 7, 7)
        request = GenerateRequest(longer, GREEDY, cache_salt="a")
        again = (await collect(engine, request))[0]
        assert list(again.token_ids) == plain_greedy(plain, longer, GREEDY.max_tokens)
        assert prefixes.n_hits == 5
    finally:
        await engine.stop()


async def test_two_users_never_meet_in_the_cache(tmp_path: Path) -> None:
    folder = write_tiny_llama(tmp_path)
    engine = StaticEngine(folder, StaticSettings(prefix_cache=True))
    await engine.start()
    prefixes = prefixes_of(engine)
    lengths: list[int] = []  # what each request was given to go on from
    take = prefixes.take

    def noted(salt: str, prompt_ids: Any) -> Any:
        cache = take(salt, prompt_ids)
        lengths.append(cache.get_seq_length())
        return cache

    prefixes.take = noted  # type: ignore[method-assign]
    try:
        for salt in ("a", "b", "c", "a", "b", None, None):
            await collect(engine, GenerateRequest(SHARED_PROMPT, GREEDY, cache_salt=salt))
        assert lengths == [0, 0, 0, 39, 39]  # without a salt it is not even asked
        several = SamplingParams(n=2, seed=1, max_tokens=4, ignore_eos=True)
        await collect(engine, GenerateRequest(SHARED_PROMPT, several, cache_salt="a"))
        assert len(lengths) == 5
        alone = replace(several, n=1)
        await collect(engine, GenerateRequest(SHARED_PROMPT, alone, cache_salt="a"))
        assert lengths[5:] == [39]
        assert set(prefixes._keys) == {"a", "b", "c"}
    finally:
        await engine.stop()


def prefixes_of(engine: StaticEngine) -> PrefixCache:
    assert engine.prefixes is not None
    return engine.prefixes
