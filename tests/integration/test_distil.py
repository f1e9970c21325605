"""Distilling to 1-bit matrices: the network that torch trains is the model that the twin runs, and
the script writes a folder that loads. How accurate a model of real size becomes is not for a test.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import mpc_model_rig as rig
import numpy as np
import pytest
import tokenizers
import torch
import transformers

from veilrun.mpc import inference
from veilrun.mpc.inference import TwinModel
from veilrun.mpc.model import binary, files
from veilrun.mpc.model.architecture import Norm
from veilrun.mpc.model.entry import Tokenizer, entry_of

TRAINING = Path(__file__).resolve().parents[2] / "training"
GOOD, BAD = "fine bright warm clever".split(), "dull flat cold silly".split()
OTHERS = "a the film plot with and it was heart".split()


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    monkeypatch.syspath_prepend(str(TRAINING))
    modules: dict[str, ModuleType] = {
        name: importlib.import_module(name)
        for name in ("binary_parts", "binary_network", "warm_start")
    }
    return SimpleNamespace(**modules)


def nearest(shape: tuple[int, ...], bits: int) -> np.ndarray:
    return np.full(shape, 1 << (bits - 1))


def test_the_trained_network_is_what_the_twin_runs(scripts):
    shape = rig.architecture()
    texts = rig.texts(shape, 20)
    start = scripts.warm_start.warm_start(rig.float_model(shape), texts)
    network = scripts.binary_network.BinaryNetwork(start).double()
    quantised = binary.quantise_binary(network.export(shape.max_tokens, len(texts)))
    twin, n_within = TwinModel(quantised), 0
    for ids in texts:
        answer, overflows = inference.predict(twin, entry_of(quantised, ids), nearest)
        rounding = scripts.binary_parts.Rounding(None)
        run = scripts.binary_network.Run(rounding, 1.0, torch.ones(1, len(ids)).double())
        with torch.no_grad():
            logits = network(torch.tensor([ids]), run)[0].numpy()
        if not overflows:
            n_within += 1
            assert np.array_equal(logits, answer.integers)
    assert n_within > len(texts) / 2


def test_training_moves_the_signs(scripts):
    shape = rig.architecture()
    texts = rig.texts(shape, 4)
    start = scripts.warm_start.warm_start(rig.float_model(shape), texts)
    network = scripts.binary_network.BinaryNetwork(start)
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    ids = torch.tensor([texts[0]])
    before = network.layers[0].qkv.export()
    losses = []
    for _ in range(30):
        rounding = scripts.binary_parts.Rounding(1)
        run = scripts.binary_network.Run(rounding, 1.0, torch.ones(1, len(texts[0])))
        logits = network(ids, run) / network.output_scale
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor([2]))
        loss.backward()
        for one in network.parameters():
            assert one.grad is not None and one.grad.isfinite().all()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert np.mean(losses[-5:]) < losses[0] / 2
    assert (network.layers[0].qkv.export().is_positive != before.is_positive).any()


def test_a_channel_that_holds_whole_rows_does_not_blow_them_up(scripts, monkeypatch):
    random, d = np.random.default_rng(0), 32
    rows = random.standard_normal((200, d))
    rows[:20, 3] = 300.0  # rows like those of [CLS]
    rows -= rows.mean(-1, keepdims=True)
    rows /= np.sqrt(np.square(rows).mean(-1, keepdims=True))
    gain = random.uniform(0.2, 3.0, d).astype(np.float32)
    gain[3] = 0.01
    norm = Norm(gain, np.zeros(d, np.float32), 1e-12)
    reader = random.standard_normal((d, 3 * d)).astype(np.float32)
    peaks = np.array([5.0 if at != 3 else 5.6 for at in range(d)])
    for peak, is_kept in ((5.5, True), (6.0, False)):
        monkeypatch.setattr(scripts.warm_start, "PEAK", peak)
        scale = scripts.warm_start.coordinates(norm, reader, peaks).scale
        size = np.sqrt(np.square(scale).mean())
        blown = size / np.sqrt(np.square(rows * scale).mean(-1))
        assert (blown[:20].max() < 1.1) == is_kept
        assert is_kept or blown[:20].min() > 2
        assert 0.5 < blown[20:].min() and blown[20:].max() < 2


def test_only_what_is_beyond_a_window_is_penalised(scripts):
    mask = torch.tensor([[1.0, 1.0, 0.0]])
    x = torch.tensor([[[0.5, -0.9], [1.0, -2.0], [9.0, 9.0]]], requires_grad=True)
    run = scripts.binary_network.Run(scripts.binary_parts.Rounding(None), 1.0, mask)
    run.penalise(x, 1.0)
    run.penalty.backward()
    assert run.penalty.item() == pytest.approx(np.log(2) / 2)  # one value at twice, of two tokens
    assert [tuple(at) for at in x.grad.nonzero().tolist()] == [(0, 1, 1)]
    assert x.grad[0, 1, 1] < 0


def test_a_row_sum_beyond_its_window_learns_even_where_all_scores_are_cut(scripts):
    shape = rig.architecture()
    texts = rig.texts(shape, 4)
    start = scripts.warm_start.warm_start(rig.float_model(shape), texts)
    layer = scripts.binary_network.BinaryNetwork(start).layers[0]
    length = len(texts[0])
    top = binary.EXP_WINDOW / 2 * scripts.binary_network.SCORES_PER_NAT
    scores = torch.full((1, shape.n_heads, length, length), top, requires_grad=True)
    seen = torch.ones(1, length)
    run = scripts.binary_network.Run(scripts.binary_parts.Rounding(None), 1.0, seen)
    layer._centre_sums(scores, seen[:, None, None, :], run)
    assert run.penalty > 0
    run.penalty.backward()
    assert (scores.grad > 0).all()


def test_lowered_row_sums_are_so_many_steps_lower(scripts):
    shape = rig.architecture()
    start = scripts.warm_start.warm_start(rig.float_model(shape), rig.texts(shape, 4))
    network = scripts.binary_network.BinaryNetwork(start)
    before = [layer.export().score for layer in network.layers]
    network.lower_row_sums()
    after = [layer.export().score for layer in network.layers]
    lower = scripts.binary_network.SPARE
    assert all((a - b == lower).all() for a, b in zip(before, after, strict=True))


def checkpoint(folder: Path) -> Path:
    """A small classifier, untrained, with a tokenizer of a few words."""
    torch.manual_seed(1)
    config = transformers.BertConfig(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=24,
        num_labels=2,
    )
    model = transformers.BertForSequenceClassification(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight *= 50 * weight.shape[-1] ** -0.5
    model.save_pretrained(folder)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *GOOD, *BAD, *OTHERS]
    vocab = {word: place for place, word in enumerate(words)}
    fast = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="[UNK]"))
    fast.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    fast.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=fast, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]"
    ).save_pretrained(folder)
    return folder


def reviews(path: Path, n: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    lines = []
    for label in random.integers(0, 2, n):
        words = random.choice(OTHERS, random.integers(2, 9)).tolist()
        words.insert(int(random.integers(len(words))), str(random.choice((BAD, GOOD)[label])))
        lines.append(" ".join(words) + f"\t{label}")
    path.write_text("\n".join(lines) + "\n")


def test_the_script_writes_a_model_that_loads(tmp_path: Path):
    source = checkpoint(tmp_path / "float")
    reviews(tmp_path / "train.tsv", 96, 1)
    reviews(tmp_path / "dev.tsv", 40, 2)
    words = [str(source), str(tmp_path / "out"), "--data", str(tmp_path), "--small"]
    script = [sys.executable, str(TRAINING / "distil_w1a4.py"), *words, "--threads", "1"]
    ran = subprocess.run(script, capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, ran.stderr
    said = json.loads(ran.stdout)
    assert (said["n_sentences"], said["n_dev"], said["epochs"]) == (96, 40, 1)
    for name in ("float_accuracy", "network_accuracy", "twin_accuracy"):
        assert 0 <= said[name] <= 1
    assert sum(said["overflows"].values()) == said["n_overflows"]
    assert (said["n_overflowed_sentences"] > 0) == (said["n_overflows"] > 0)
    model = files.load(tmp_path / "out")
    assert model.public.profile.name == "w1a4"
    for name, matrix in model.private.matrices.items():
        if name.rpartition(".")[2] in ("qkv", "out", "up", "down"):
            assert (np.abs(matrix.weight) == np.abs(matrix.weight[:1])).all()
    ids = Tokenizer(files.load_tokenizer_json(tmp_path / "out")).ids("a fine film")
    assert ids[0] == 2 and ids[-1] == 3 and len(ids) == 5
    ran_again = subprocess.run(script, capture_output=True, text=True, timeout=600)
    assert ran_again.returncode != 0 and "exists" in ran_again.stderr
