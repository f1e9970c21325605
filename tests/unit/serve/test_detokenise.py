"""Incremental text against the library's decode of everything at once, over any ids."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from veilrun.serve.detokenise import Detokeniser, Vocabulary

TEXT = "Ω naïve café ate 10 € of 寿司 and a 🦄 said: häh? Over the hills and far away. " * 3


@cache
def byte_level() -> Vocabulary:
    """As GPT-2, Llama 3 and Qwen have it: tokens are bytes, characters may be cut."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=262,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    return Vocabulary(tokenizer)


@cache
def byte_fallback() -> Vocabulary:
    """As Llama 2 and Mistral have it: SentencePiece, bytes as tokens, a first space dropped."""
    words = ["▁", "a", "b", "▁a", "▁ba", "é", "寿", "\N{REPLACEMENT CHARACTER}", ".", "▁▁"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: place for place, token in enumerate(tokens)},
            merges=[("▁", "a"), ("▁", "▁")],
            unk_token="<unk>",
            byte_fallback=True,
        )
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return Vocabulary(tokenizer)


@cache
def metaspace() -> Vocabulary:
    """The other way to write SentencePiece."""
    tokens = ["<s>", "▁a", "▁b", "c", "▁", "▁▁", "é"]
    tokenizer = Tokenizer(models.WordLevel({one: place for place, one in enumerate(tokens)}, "c"))
    tokenizer.add_special_tokens(["<s>"])
    tokenizer.decoder = decoders.Metaspace()
    return Vocabulary(tokenizer)


KINDS = {"byte_level": byte_level, "byte_fallback": byte_fallback, "metaspace": metaspace}


def all_at_once(vocabulary: Vocabulary, ids: list[int]) -> str:
    return vocabulary.backend.decode(ids, skip_special_tokens=True)


def in_groups(detokeniser: Detokeniser, ids: list[int], sizes: list[int]) -> str:
    text, start = "", 0
    for size in [*sizes, len(ids)]:
        text += detokeniser.feed(ids[start : start + size])
        start += size
    return text + detokeniser.flush()


def ids_of(kind: str, max_size: int = 80) -> st.SearchStrategy[list[int]]:
    # A few ids beyond the vocabulary: models have more rows than their tokenizer has tokens.
    n_ids = KINDS[kind]().backend.get_vocab_size() + 2
    anything = st.integers(0, n_ids - 1)
    # Valid bytes are rare among random ones, and runs of them are where it gets difficult.
    bytes_of = [KINDS[kind]().backend.encode(one).ids for one in ("é", "寿", "🦄", " a", "b")]
    whole = st.sampled_from([one for one in bytes_of if one] or [[0]])
    return st.lists(st.one_of(anything.map(lambda one: [one]), whole), max_size=max_size).map(
        lambda groups: [one for group in groups for one in group]
    )


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_any_ids_in_any_groups_give_the_text_of_all_at_once(kind, data):
    ids = data.draw(ids_of(kind))
    sizes = data.draw(st.lists(st.integers(0, 5), max_size=60))
    vocabulary = KINDS[kind]()
    assert in_groups(Detokeniser(vocabulary), ids, sizes) == all_at_once(vocabulary, ids)


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_a_continuation_adds_exactly_to_its_prompt(kind, data):
    prompt, new = data.draw(ids_of(kind, 20)), data.draw(ids_of(kind, 20))
    vocabulary = KINDS[kind]()
    before, whole = all_at_once(vocabulary, prompt), all_at_once(vocabulary, prompt + new)
    if whole.startswith(before):  # otherwise the new ids complete or damage its last character
        text = in_groups(Detokeniser(vocabulary, prompt), new, [1] * len(new))
        assert before + text == whole


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_may_end_in_a_long_run_of_bytes(kind):
    vocabulary = KINDS[kind]()
    prompt, new = vocabulary.backend.encode("🦄🦄").ids, vocabulary.backend.encode("🦄a").ids
    text = in_groups(Detokeniser(vocabulary, prompt), new, [1] * len(new))
    assert all_at_once(vocabulary, prompt) + text == all_at_once(vocabulary, prompt + new)


def test_a_prompt_of_ids_may_end_inside_a_character():
    vocabulary = byte_level()
    ids = vocabulary.backend.encode("a🦄").ids
    cut = len(ids) - 1
    detokeniser = Detokeniser(vocabulary, ids[:cut], prompt_is_text=False)
    assert detokeniser.feed(ids[cut:]) == "🦄"


def test_only_an_unfinished_character_waits():
    vocabulary = byte_level()
    *first, last = vocabulary.backend.encode("é").ids
    detokeniser = Detokeniser(vocabulary)
    assert detokeniser.feed([*vocabulary.backend.encode("caf").ids, *first]) == "caf"
    assert detokeniser.feed([last]) == "é"
    assert detokeniser.flush() == ""


@pytest.mark.parametrize(
    ("kind", "text"), [("byte_level", "🦄"), ("byte_fallback", "🦄"), ("byte_fallback", ".")]
)
def test_long_answers_cost_the_same_per_id(monkeypatch, kind, text):
    """A peer chooses the ids: no choice may make the work grow with the answer."""
    vocabulary = KINDS[kind]()
    first = vocabulary.backend.encode(text).ids[0]
    decode, n_decoded = vocabulary.decode, []
    monkeypatch.setattr(vocabulary, "decode", lambda ids: n_decoded.append(len(ids)) or decode(ids))
    detokeniser = Detokeniser(vocabulary)
    for _ in range(2000):
        detokeniser.feed([first])
    assert max(n_decoded) <= 32


def test_the_real_tokenizer(stories):
    vocabulary = Vocabulary(Tokenizer.from_file(str(stories / "tokenizer.json")))
    text = "Once upon a time, there was a 🦄 named Zoë.  She ate 寿司!"
    ids = vocabulary.backend.encode(text).ids
    detokeniser = Detokeniser(vocabulary)
    pieces = [detokeniser.feed([one]) for one in ids]
    assert "".join(pieces) + detokeniser.flush() == text
    assert pieces[1:4] == ["Once", " upon", " a"]  # the first id is <s>


def test_special_tokens_do_not_show():
    tokenizer = byte_level().backend
    tokenizer.post_processor = processors.ByteLevel()
    detokeniser = Detokeniser(byte_level())
    end = tokenizer.token_to_id("<|end|>")
    assert detokeniser.feed([end, *tokenizer.encode("ha").ids, end]) == "ha"
