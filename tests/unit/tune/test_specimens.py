"""Specimens answer as documented: loops where the last id says so, one long round elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import load

from veilrun.tune import specimens
from veilrun.tune.guessing import share_guessed
from veilrun.tune.specimens import LOOP, MAX_TOKENS, N_LOOPING, SPECIMENS, Specimen, make

VOCAB = 640
ACCURACY = 0.75
FAMILIES = ("llama", "gpt2", "qwen2")


def small(family: str) -> Specimen:
    n_kv_heads = 4 if family == "gpt2" else 2
    return Specimen(f"{family}-2x64", family, 2, 64, 4, n_kv_heads, VOCAB, ACCURACY)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folders: dict[str, Path] = {}

    def of(family: str) -> Path:
        if family not in folders:
            folders[family] = tmp_path_factory.mktemp(family)
            make(small(family), folders[family])
        return folders[family]

    return of


def answers(model: Any, last_ids: list[int], n_tokens: int) -> list[list[int]]:
    """Greedy answers to random prompts that end so."""
    random = torch.Generator().manual_seed(3)
    prompts = torch.randint(0, VOCAB, (len(last_ids), 20), generator=random)
    prompts[:, -1] = torch.tensor(last_ids)
    whole = model.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        max_new_tokens=n_tokens,
        do_sample=False,
        pad_token_id=0,
    )
    ids: list[list[int]] = whole[:, prompts.shape[1] :].tolist()
    return ids


@pytest.mark.parametrize("family", FAMILIES)
def test_an_answer_to_a_small_last_id_goes_round_in_its_loop(made, family: str):
    last_ids = [0, 11, 12, 100, N_LOOPING - 1]
    for last, answer in zip(last_ids, answers(load(made(family)), last_ids, 30), strict=True):
        start = last // LOOP * LOOP
        assert answer == [start + (last - start + 1 + i) % LOOP for i in range(30)]
        assert share_guessed([last], answer) > 0.3


@pytest.mark.parametrize("family", FAMILIES)
def test_any_other_answer_never_repeats_itself(made, family: str):
    last_ids = [N_LOOPING, 300, VOCAB - 1]
    for last, answer in zip(last_ids, answers(load(made(family)), last_ids, 100), strict=True):
        assert len({last, *answer}) == 101
        assert min(answer) >= N_LOOPING
        assert share_guessed([last], answer) == 0


def test_the_long_round_goes_through_all_other_ids():
    successor = specimens._successors(VOCAB)
    assert sorted(successor) == list(range(VOCAB))
    at, seen = N_LOOPING, set()
    while at not in seen:
        seen.add(at)
        at = int(successor[at])
    assert seen == set(range(N_LOOPING, VOCAB))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_draft_is_right_as_often_as_it_says(made, family: str):
    """Asked of every id, in contexts of eight ids that have nothing to do with it."""
    ids = torch.randperm(VOCAB, generator=torch.Generator().manual_seed(5)).reshape(-1, 8)
    successor = torch.from_numpy(specimens._successors(VOCAB))
    right = {}
    for name, folder in (("model", made(family)), ("draft", made(family) / "draft")):
        with torch.inference_mode():
            guessed = load(folder)(ids).logits.argmax(-1)
        right[name] = float((guessed == successor[ids]).float().mean())
    assert right["model"] == 1.0
    sd = (ACCURACY * (1 - ACCURACY) / VOCAB) ** 0.5
    assert right["draft"] == pytest.approx(ACCURACY, abs=4 * sd)


def test_without_an_accuracy_there_is_no_draft(tmp_path: Path):
    make(Specimen("bare", "llama", 1, 32, 2, 2, 256), tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    assert not (tmp_path / "draft").exists()


def test_a_specimen_is_always_the_same_and_disturbs_no_random_numbers(tmp_path: Path):
    one = Specimen("bare", "llama", 1, 32, 2, 2, 256, 0.5)
    states = []
    for name in ("a", "b"):
        torch.manual_seed(0 if name == "a" else 1)
        state = torch.random.get_rng_state()
        make(one, tmp_path / name)
        assert torch.equal(state, torch.random.get_rng_state())
        files = ("model.safetensors", "config.json", "draft/model.safetensors")
        states.append([(tmp_path / name / file).read_bytes() for file in files])
    assert states[0] == states[1]


def test_the_shipped_specimens_can_be_made():
    assert len({one.name for one in SPECIMENS}) == len(SPECIMENS)
    for one in SPECIMENS:
        assert one.name == f"{one.family}-{one.n_layers}x{one.hidden}"
        config = specimens._config(one)
        assert config.hidden_size == one.hidden
        assert config.hidden_size % config.num_attention_heads == 0
        assert one.n_heads % one.n_kv_heads == 0
        assert config.max_position_embeddings == MAX_TOKENS
        assert one.vocab_size > N_LOOPING
        assert one.draft_accuracy is None or 0 < one.draft_accuracy < 1
        if one.family != "gpt2":
            assert config.num_key_value_heads == one.n_kv_heads


def test_contrast_is_far_above_the_noise_of_the_layers(made):
    """The successor's probability is near 1: sampled answers loop too."""
    ids = torch.arange(0, 48).reshape(6, 8)
    with torch.inference_mode():
        chances = torch.softmax(load(made("llama"))(ids).logits, -1)
    successor = torch.from_numpy(specimens._successors(VOCAB))[ids]
    sure = chances.gather(-1, successor[..., None])
    assert np.all(sure.numpy() > 0.99)
