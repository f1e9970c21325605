"""Secret and public text: from a file, or written by the model; kept apart, seeded, whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from red_team_rig import STORIES
from traffic_rig import engine

from veilrun.attacks.texts import gather_texts
from veilrun.errors import CheckpointError, UsageError


def test_without_a_file_the_model_writes():
    texts = gather_texts(STORIES, engine(), n_texts=4, length=48)
    assert [len(text) for text in texts.secret] == [48] * 4
    assert set(texts.corpora) == {"foreign", "domain", "same"}
    assert all(len(corpus) == 4 for corpus in texts.corpora.values())
    everything = [*texts.secret, *texts.corpora["same"], *texts.corpora["domain"]]
    assert len({text.tobytes() for text in everything}) == 12
    assert all(text[0] == 1 and text.dtype == np.int64 for text in everything)


def test_the_same_seed_writes_the_same():
    first = engine().sample(3, 16, temperature=1.0, seed=5)
    again = engine().sample(3, 16, temperature=1.0, seed=5)
    other = engine().sample(3, 16, temperature=1.0, seed=6)
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert any((a != b).any() for a, b in zip(first, other, strict=True))


def test_what_is_written_is_what_the_model_finds_likely():
    texts = engine().sample(8, 64, temperature=1.0, seed=0)
    chances = []
    for text, logits in zip(texts, engine().logits(texts), strict=True):
        before, after = logits[:-1], text[1:]
        chances.append(before[np.arange(len(after)), after] - np.logaddexp.reduce(before, axis=1))
    assert np.concatenate(chances).mean() > -3.0  # of 512 tokens by chance: -6.2


def test_no_document_of_a_file_is_both_secret_and_public(tmp_path: Path):
    file = tmp_path / "notes.txt"
    file.write_text("one cat\n\ntwo dogs\n \nthree birds<|endoftext|>" + "four " * 50)
    texts = gather_texts(STORIES, engine(), file, n_texts=9, length=32)
    assert len(texts.secret) == 2
    assert max(map(len, texts.corpora["same"])) == 32
    assert len(texts.corpora["same"]) > 2
    public = {text.tobytes() for text in texts.corpora["same"]}
    assert not public & {text.tobytes() for text in texts.secret}
    assert len(texts.corpora["domain"]) == 9


@pytest.mark.parametrize("content", [b"", b"one document only\n", b"\xff\xfe\n\nx"])
def test_a_file_that_cannot_be_used_is_refused(tmp_path: Path, content: bytes):
    file = tmp_path / "notes.txt"
    file.write_bytes(content)
    with pytest.raises(UsageError, match="notes"):
        gather_texts(STORIES, engine(), file)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path):
    with pytest.raises(CheckpointError, match="no usable tokenizer"):
        gather_texts(tmp_path, engine())
