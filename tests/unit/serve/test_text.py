"""The tokenizer side on small tokenizers of every kind, and folders that hold none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from veilrun.errors import CheckpointError
from veilrun.serve.openai_errors import RequestFault
from veilrun.serve.text import TextSide, load_text_side

TEXT = "Zoë ate 寿司 🦄 at home."


@pytest.fixture(scope="module")
def stories_side(stories: Path) -> TextSide:
    return load_text_side(stories, "stories")


@pytest.fixture(scope="module")
def byte_level_side(tmp_path_factory: pytest.TempPathFactory) -> TextSide:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=262,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT] * 3, trainer)
    tokenizer.enable_truncation(3)  # as some tokenizer.json do
    tokenizer.enable_padding(length=50)
    folder = tmp_path_factory.mktemp("byte-level")
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return load_text_side(folder, "bytes")


async def test_neither_truncation_nor_padding_touches_a_prompt(byte_level_side: TextSide):
    ids = await byte_level_side.prompt_ids(TEXT)
    detokeniser = byte_level_side.detokeniser()
    assert detokeniser.feed(ids) + detokeniser.flush() == TEXT


@pytest.mark.parametrize("name", ["stories_side", "byte_level_side"])
async def test_token_bytes_add_up_to_the_text(request, name):
    side: TextSide = request.getfixturevalue(name)
    ids = await side.prompt_ids(TEXT)
    shown = [side.token_text(one) for one in ids if side._vocabulary.kind(one)]
    assert b"".join(bytes(one.raw) for one in shown).decode().strip() == TEXT
    whole = [one for one in shown if not one.text.startswith("bytes:")]
    assert all(one.text.encode() == bytes(one.raw) for one in whole)
    assert len(whole) < len(shown)  # characters were cut, and parts are shown as bytes
    assert side.token_text(10**6).raw == ()


async def test_long_texts_have_the_same_ids(stories_side: TextSide):
    text = "once upon a time " * 1500
    long = await stories_side.prompt_ids(text)
    assert long == tuple(stories_side._backend.encode(text).ids)


async def test_prompts_have_the_tokens_that_transformers_gives(stories_side: TextSide):
    assert list(await stories_side.prompt_ids(TEXT)) == stories_side._tokenizer.encode(TEXT)


async def test_no_template_no_chat(stories_side: TextSide):
    with pytest.raises(RequestFault, match="no chat template"):
        await stories_side.chat_ids([{"role": "user", "content": "x"}])


def test_a_folder_without_a_tokenizer(tmp_path: Path):
    with pytest.raises(CheckpointError, match="no tokenizer loads"):
        load_text_side(tmp_path, "nothing")


def test_code_that_comes_with_a_model_is_not_run(stories: Path, tmp_path: Path):
    ran = tmp_path / "ran"
    for name in ("tokenizer.json", "config.json"):
        os.symlink(stories / name, tmp_path / name)
    (tmp_path / "own.py").write_text(f"open({str(ran)!r}, 'w')\nclass Own: ...\n")
    config = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": [None, "own.Own"]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    try:
        load_text_side(tmp_path, "own")
    except CheckpointError:
        pass
    assert not ran.exists()


def test_help_does_not_wait_for_transformers():
    program = (
        "import sys, veilrun.serve.text, veilrun.cli.proxy, veilrun.cli.chat;"
        "sys.exit('transformers' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
