"""From a checkpoint to a folder: the report tells the truth, and what cannot work is refused before
anything is written. Also ids and entries, which all roles make in one place.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import mpc_model_rig as rig
import numpy as np
import pytest
import tokenizers
import torch
import transformers

from veilrun.errors import CheckpointError, UnsupportedModel, UsageError
from veilrun.mpc import cost
from veilrun.mpc.model import files
from veilrun.mpc.model.architecture import load
from veilrun.mpc.model.calibration import calibrate
from veilrun.mpc.model.convert import SAMPLE, compare, convert, tokenizer_of
from veilrun.mpc.model.entry import Tokenizer, check_ids, client_entry, entry_of
from veilrun.mpc.model.quantise import quantise
from veilrun.mpc.model.quantised import CLIENT_EMBEDDING, SECRET_EMBEDDING
from veilrun.mpc.model.reference import EMBEDDING, forward
from veilrun.mpc.profile import W1A4, W16A8

WORDS = "a fine film with no plot and much heart it was dull or bright".split()
TEXTS = [
    "a fine film",
    "it was dull and with no heart",
    "much plot",
    "a film with no plot and no heart it was dull or bright",
    "bright",
]


def checkpoint(folder: Path, kind: str = "ForSequenceClassification", n_vocab: int = 40) -> Path:
    """A random model with a tokenizer of a few words, which cuts and pads as real ones do."""
    config = transformers.BertConfig(
        vocab_size=n_vocab,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=20,
        num_labels=3,
    )
    torch.manual_seed(1)
    model = getattr(transformers, "Bert" + kind)(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter *= 50 * parameter.shape[-1] ** -0.5
    model.save_pretrained(folder)
    vocab = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    fast = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="[UNK]"))
    fast.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    fast.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    fast.enable_truncation(4)
    fast.enable_padding(length=4)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=fast, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]"
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("classifier"))


@pytest.mark.parametrize("kind", [SECRET_EMBEDDING, CLIENT_EMBEDDING])
def test_a_checkpoint_becomes_a_folder(classifier: Path, tmp_path: Path, kind: str):
    steps: list[tuple[str, int, int]] = []
    report = convert(
        classifier,
        tmp_path / "out",
        texts=TEXTS,
        embedding=kind,
        progress=lambda *step: steps.append(step),
    )
    model = files.load(tmp_path / "out")
    assert report.digest == files.digest(tmp_path / "out").hex()
    assert (report.profile, report.embedding) == ("w16a8", kind) and model.public.embedding == kind
    assert (report.n_texts, report.max_tokens) == (5, 15)
    assert report.architecture == model.public.architecture == load(classifier).architecture
    assert report.costs == tuple(cost.predict(model.public, length) for length in (8, 15))
    assert [step for step in steps if step[1] == step[2]] == [
        ("calibrating", 2, 2),
        ("checking", 5, 5),
    ]
    agreement = report.agreement
    assert agreement.n_texts == 5 and agreement.same_label == 1.0
    assert agreement.cosine_worst > 0.999 and agreement.cosine_median >= agreement.cosine_worst
    assert not agreement.overflows and not agreement.flagged
    tokenizer = Tokenizer(files.load_tokenizer_json(tmp_path / "out"))
    ids = tokenizer.ids(TEXTS[3])
    assert len(ids) == 15 and (ids[0], ids[-1]) == (2, 3)  # not cut, not padded
    ran = rig.run(model, ids)
    expected = forward(load(classifier), ids).logits
    assert expected is not None
    assert np.abs(ran.answer.output - expected).max() < 3 * agreement.largest_difference + 1e-3
    assert np.array_equal(ran.answer.integers, ran.twin.integers)


def test_an_encoder_has_no_labels_to_agree_on(tmp_path: Path):
    encoder = checkpoint(tmp_path / "encoder", "Model")
    report = convert(encoder, tmp_path / "out", texts=TEXTS, profile=W16A8)
    assert report.agreement.same_label is None and report.agreement.cosine_worst > 0.99


def test_costs_are_told_for_lengths_that_were_calibrated(classifier: Path, tmp_path: Path):
    report = convert(classifier, tmp_path / "out", texts=TEXTS)
    assert report.max_tokens == 15
    assert [one.n_tokens for one in report.costs] == [8, 15]
    short = convert(classifier, tmp_path / "short", texts=["plot"])
    assert [one.n_tokens for one in short.costs] == [short.max_tokens] == [3]


def test_a_float_model_is_not_put_through_a_profile_of_one_bit(classifier: Path, tmp_path: Path):
    with pytest.raises(UnsupportedModel, match=r"w1a4 needs a model trained for it.*distil_w1a4"):
        convert(classifier, tmp_path / "out", texts=TEXTS, profile=W1A4)
    assert not (tmp_path / "out").exists()


def test_a_coarse_profile_shows_in_the_report(classifier: Path, tmp_path: Path):
    fine = convert(classifier, tmp_path / "fine", texts=TEXTS).agreement
    rough = dataclasses.replace(W1A4, name="rough")
    coarse = convert(classifier, tmp_path / "coarse", texts=TEXTS, profile=rough).agreement
    assert coarse.largest_difference > 3 * fine.largest_difference


def test_values_beyond_the_calibrated_ranges_are_reported():
    shape = rig.architecture()
    model = rig.float_model(shape)
    sentences = rig.texts(shape, 24)
    ranges = calibrate(model, sentences)
    layer = ranges.layers[1]
    tight = dataclasses.replace(
        ranges,
        layers=(
            ranges.layers[0],
            dataclasses.replace(
                layer, variance_1_max=layer.variance_1_max / 50, v_max=layer.v_max / 20
            ),
        ),
    )
    found = compare(model, quantise(model, tight, W16A8), sentences[:4])
    assert any("norm_1.variance" in place for place in found.overflows), found
    assert min(found.overflows.values()) > 0
    good = compare(model, quantise(model, ranges, W16A8), sentences[:4])
    assert not good.overflows and good.cosine_worst > found.cosine_worst


def test_the_twin_runs_a_sample_of_many_texts(classifier: Path, tmp_path: Path):
    report = convert(classifier, tmp_path / "out", texts=TEXTS[:3] * 50)
    assert report.n_texts == 150 and SAMPLE / 2 < report.agreement.n_texts <= SAMPLE


# --- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("texts", "problem"),
    [([], "needs texts"), (["plot " * 20], r"text 1 has 22 tokens; this model takes 1 to 20")],
)
def test_texts_that_do_not_fit_are_refused(classifier: Path, tmp_path: Path, texts, problem):
    with pytest.raises(UsageError, match=problem):
        convert(classifier, tmp_path / "out", texts=texts)
    assert not list(tmp_path.iterdir())


def test_an_existing_folder_is_refused_before_any_work(tmp_path: Path):
    (tmp_path / "out").mkdir()
    with pytest.raises(UsageError, match="exists already"):
        convert(tmp_path / "nowhere", tmp_path / "out", texts=TEXTS)


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path):
    small = checkpoint(tmp_path / "small", n_vocab=10)
    with pytest.raises(CheckpointError, match="do not belong together"):
        convert(small, tmp_path / "out", texts=TEXTS)


def test_a_tokenizer_that_is_missing_or_adds_something_is_refused(tmp_path: Path, monkeypatch):
    folder = checkpoint(tmp_path / "odd")
    call = transformers.PreTrainedTokenizerFast.__call__

    def one_more(self, text, **options):
        encoded = call(self, text, **options)
        encoded["input_ids"] = [*encoded["input_ids"], 3]
        return encoded

    monkeypatch.setattr(transformers.PreTrainedTokenizerFast, "__call__", one_more)
    with pytest.raises(UnsupportedModel, match="adds something"):
        tokenizer_of(folder, TEXTS)
    for path in folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(CheckpointError, match=r"has none of tokenizer\.json"):
        tokenizer_of(folder, TEXTS)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="no tokenizer that can be read"):
        tokenizer_of(folder, TEXTS)


def test_a_file_that_is_no_tokenizer_is_refused():
    with pytest.raises(CheckpointError, match="does not parse"):
        Tokenizer(b"{}")


# --- ids and entries --------------------------------------------------------------------------


def test_ids_are_checked():
    model = rig.quantised(rig.float_model(rig.architecture("roberta")))
    public = dataclasses.replace(model.public, max_tokens=5)
    assert check_ids(public, [1, 2, 3]).tolist() == [1, 2, 3]
    for bad in ([], [0] * 25, [[1]], [60], [-1], [1.0], [True, False]):
        with pytest.raises(UsageError):
            check_ids(public, bad)
    with pytest.raises(UsageError, match="quantise it again with longer texts"):
        check_ids(public, [1] * 6)
    assert len(check_ids(public, [1] * 6, allow_longer=True)) == 6


@pytest.mark.parametrize("family", rig.FAMILIES)
def test_an_entry_is_what_the_float_model_starts_from(family: str):
    model = rig.float_model(rig.architecture(family))
    ids = [1, 5, 9, 5]
    seen = {}
    forward(model, ids, lambda name, layer, value: seen.setdefault((name, layer), value))
    open_ = rig.quantised(model, kind=CLIENT_EMBEDDING)
    assert open_.client is not None
    entry = client_entry(open_.public, open_.client, ids)
    assert entry.dtype == np.int64 and np.array_equal(entry, entry_of(open_, ids))
    assert np.abs(entry / 2.0**8 - seen["y_0", EMBEDDING]).max() <= 2.0**-9 + 1e-5
    secret = rig.quantised(model, kind=SECRET_EMBEDDING)
    row = entry_of(secret, ids) + secret.private.constants["position"][: len(ids)]
    h = seen["h_0", EMBEDDING]
    centred = h - h.mean(-1, keepdims=True)
    scale = np.abs(row).max() / np.abs(centred).max()
    assert np.abs(row / scale - centred).max() < 1e-3
