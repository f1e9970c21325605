"""Distil a fine-tuned BERT classifier into one with 1-bit matrices and 4-bit activations.

    python training/distil_w1a4.py MODEL OUT [--data ../shared/data/sst2]

MODEL is a folder of `finetune_sst2.py`; OUT becomes a quantised model of the profile `w1a4`, as
`veilrun mpc` runs it. The network starts from the folded float weights (`warm_start`) and is
trained in the integers of the protocol (`binary_network`): first its activations are whole
numbers and its weights are not; then the weights go over to signs and levels, step by step.
It learns from the float model: from its logits, and from its rows after every norm.
A value that leaves its window wraps in the protocol, which training does not show: beyond a part
of its window each value costs, and the more the further weights have become signs.

`dev.tsv` is only ever read to report. `--small` is the quick run for tests.

Invariants: the seed and the number of threads decide every weight on one machine, and OUT appears
whole or not at all.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import logging
import math
import sys
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from binary_network import BinaryNetwork, Frame, Run
from binary_parts import Rounding
from finetune_sst2 import Sentences, accuracy, epoch_batches, rate_share, read_sentences
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn, track
from torch import Tensor
from torch.nn import functional
from transformers import AutoTokenizer, BertForSequenceClassification
from warm_start import warm_start

from veilrun.mpc import inference
from veilrun.mpc.inference import TwinModel
from veilrun.mpc.machines.twin import uniform_low_bits
from veilrun.mpc.model import files
from veilrun.mpc.model.architecture import load
from veilrun.mpc.model.binary import quantise_binary
from veilrun.mpc.model.convert import tokenizer_of
from veilrun.mpc.model.entry import entry_of
from veilrun.mpc.model.quantised import QuantisedModel


@dataclass(frozen=True)
class Recipe:
    """How to train."""

    rate: float = 4e-4
    epochs: int = 3
    batch: int = 32
    warmup: float = 0.05  # share of the run
    real: float = 0.1  # share of the run with weights that are not signs at all
    signs: float = 0.6  # share of the run after which they are nothing else
    cropped: float = 0.5  # share of the sentences of which only a part is shown
    rows: float = 2.0  # weight of the rows' error, beside that of the logits
    sums: float = 0.02  # weight of row sums far from where their grid is fine
    windows: float = 1.0  # weight of what is beyond a window, once weights are signs
    real_windows: float = 0.1  # the same before they begin to be
    measured: int = 200  # sentences that the start is measured on
    seed: int = 1

    def share(self, done: float) -> float:
        """How far weights have become signs, at this share of the run."""
        return min(max((done - self.real) / (self.signs - self.real), 0.0), 1.0)

    def window_weight(self, done: float) -> float:
        """A value beyond its window spoils an answer, so it must not pay for a better row."""
        return self.real_windows * (self.windows / self.real_windows) ** self.share(done)


SMALL = Recipe(epochs=1, measured=20)
SMALL_SENTENCES = 320
PAD = 0


class Teacher:
    """The float model: logits, and the rows after every norm in the network's coordinates."""

    def __init__(self, model: BertForSequenceClassification, frames: tuple[Frame, ...]) -> None:
        self._model = model.eval()
        self._rows: list[Tensor] = []
        norms = [model.bert.embeddings.LayerNorm]
        for layer in model.bert.encoder.layer:
            norms += [layer.attention.output.LayerNorm, layer.output.LayerNorm]
        for norm, frame in zip(norms, frames, strict=True):
            bias = norm.bias.detach()
            factor = torch.tensor(frame.scale, dtype=torch.float32) / norm.weight.detach()
            norm.register_forward_hook(self._hook(bias, factor))

    def _hook(self, bias: Tensor, factor: Tensor):  # noqa: ANN202  # a hook of torch
        def keep(module: object, inputs: object, output: Tensor) -> None:
            rows = (output.float() - bias) * factor
            self._rows.append(rows * rows.square().mean(-1, keepdim=True).rsqrt())

        return keep

    @torch.no_grad()
    def __call__(self, batch: dict[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
        self._rows = []
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        with torch.autocast("cpu", torch.bfloat16):
            logits = self._model(**inputs).logits
        return logits.float(), self._rows


def cropped(ids: list[int], random: np.random.Generator) -> list[int]:
    """A part of a sentence, under its first and last token."""
    inside = ids[1:-1]
    length = int(random.integers(min(3, len(inside)), len(inside) + 1))
    start = int(random.integers(len(inside) - length + 1))
    return [ids[0], *inside[start : start + length], ids[-1]]


def losses(
    network: BinaryNetwork, teacher: Teacher, batch: dict[str, Tensor], run: Run
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of the logits, of the rows, of row sums, and of what is beyond a window."""
    expected, rows = teacher(batch)
    logits = network(batch["input_ids"], run) / network.output_scale
    of_logits = functional.kl_div(
        logits.log_softmax(-1), expected.log_softmax(-1), reduction="batchmean", log_target=True
    )
    errors = [
        ((ours - theirs).square().mean(-1) * run.mask).sum() / run.mask.sum()
        for ours, theirs in zip(run.rows[1:], rows[1:], strict=True)
    ]
    of_rows = torch.stack(errors).mean()
    return of_logits, of_rows, torch.as_tensor(run.spread), torch.as_tensor(run.penalty)


def train(
    network: BinaryNetwork,
    teacher: Teacher,
    sentences: Sentences,
    recipe: Recipe,
    console: Console,
) -> None:
    """Train in place."""
    optimizer = torch.optim.AdamW(
        network.parameters(), recipe.rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True
    )
    n_steps = recipe.epochs * math.ceil(len(sentences.ids) / recipe.batch)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: rate_share((step + 0.5) / n_steps, recipe.warmup)
    )
    random, rounding = np.random.default_rng(recipe.seed), Rounding(recipe.seed)
    lengths = [len(row) for row in sentences.ids]
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("training", total=n_steps)
        batches = (
            places
            for _ in range(recipe.epochs)
            for places in epoch_batches(lengths, recipe.batch, random)
        )
        for step, places in enumerate(batches):
            part = sentences.part(places)
            if random.random() < recipe.cropped:
                part = replace(part, ids=[cropped(row, random) for row in part.ids])
            batch = part.batch(list(range(len(places))), PAD)
            done = step / n_steps
            run = Run(rounding, recipe.share(done), batch["attention_mask"].float())
            of_logits, of_rows, of_sums, of_windows = losses(network, teacher, batch, run)
            loss = of_logits + recipe.rows * of_rows + recipe.sums * of_sums
            loss = loss + recipe.window_weight(done) * of_windows
            loss.backward()  # type: ignore[no-untyped-call]  # not annotated in torch
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            progress.advance(bar)


# --- how good it is -----------------------------------------------------------------------------


@torch.no_grad()
def network_accuracy(network: BinaryNetwork, sentences: Sentences, seed: int) -> float:
    """The share of sentences whose label the network gives, rounding by chance."""
    rounding = Rounding(seed)
    order = sorted(range(len(sentences.ids)), key=lambda at: len(sentences.ids[at]))
    right = 0
    for start in range(0, len(order), 64):
        batch = sentences.batch(order[start : start + 64], PAD)
        logits = network(batch["input_ids"], Run(rounding, 1.0, batch["attention_mask"].float()))
        right += int((logits.argmax(dim=1) == batch["labels"]).sum())
    return right / len(order)


def twin_accuracy(
    model: QuantisedModel, sentences: Sentences, seed: int, console: Console
) -> tuple[float, int, Counter[str]]:
    """The same of the protocol's twin; on how many sentences values left their range on the way,
    and how many values did, by place.
    """
    twin, low_bits = TwinModel(model), uniform_low_bits(seed)
    right = n_outside = 0
    places: Counter[str] = Counter()
    for ids, label in track(
        list(zip(sentences.ids, sentences.labels, strict=True)), "the twin", console=console
    ):
        answer, overflows = inference.predict(twin, entry_of(model, ids), low_bits)
        right += int(np.argmax(answer.output)) == label
        n_outside += bool(overflows)
        for one in overflows:
            places[one.where] += one.n_values
    return right / len(sentences.ids), n_outside, places


# --- the run ------------------------------------------------------------------------------------


def distil(
    source: Path, out: Path, data: Path, recipe: Recipe, limit: int | None, console: Console
) -> dict[str, object]:
    """Train, write the folder `out`, and say how good the model is."""
    began = time.monotonic()
    torch.manual_seed(recipe.seed)
    tokenizer = AutoTokenizer.from_pretrained(source)
    sentences = read_sentences(data / "train.tsv", tokenizer, limit)
    dev = read_sentences(data / "dev.tsv", tokenizer, limit)
    start = warm_start(load(source), sentences.ids[: recipe.measured])
    network = BinaryNetwork(start)
    model = BertForSequenceClassification.from_pretrained(source, dtype=torch.float32)
    train(network, Teacher(model, start.frames), sentences, recipe, console)
    network.lower_row_sums()
    quantised = quantise_binary(network.export(max(map(len, sentences.ids)), len(sentences.ids)))
    of_twin, n_outside, places = twin_accuracy(quantised, dev, recipe.seed, console)
    files.save(quantised, tokenizer_of(source, []), out)
    return {
        "float_accuracy": round(accuracy(model, dev), 4),
        "network_accuracy": round(network_accuracy(network, dev, recipe.seed), 4),
        "twin_accuracy": round(of_twin, 4),
        "n_overflows": places.total(),
        "n_overflowed_sentences": n_outside,
        "overflows": dict(places.most_common()),
        "n_sentences": len(sentences.ids),
        "n_dev": len(dev.ids),
        "epochs": recipe.epochs,
        "seed": recipe.seed,
        "seconds": round(time.monotonic() - began, 1),
    }


def keep_freed_memory() -> None:
    """Tensors of every step are freed; asking the system for each anew can take most of the time.

    Only glibc has these settings: M_MMAP_MAX 0, M_TRIM_THRESHOLD without end.
    """
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(-4, 0)
        library.mallopt(-1, 2**31 - 1)


def main() -> None:
    """Read the arguments, distil, print one line of JSON."""
    parser = argparse.ArgumentParser(
        description="Distil a film review classifier to 1-bit weights."
    )
    parser.add_argument("model", type=Path, help="folder of finetune_sst2.py")
    parser.add_argument("out", type=Path, help="folder for the quantised model; must not exist")
    parser.add_argument("--data", type=Path, default=Path("../shared/data/sst2"))
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    parser.add_argument("--sentences", type=int, help="read only that many sentences of each file")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--small", action="store_true", help="the quick run for tests")
    chosen = parser.parse_args()
    if chosen.out.exists():
        raise SystemExit(f"{chosen.out} exists already")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    keep_freed_memory()
    torch.set_num_threads(chosen.threads)
    recipe = replace(SMALL if chosen.small else Recipe(), seed=chosen.seed)
    if chosen.epochs:
        recipe = replace(recipe, epochs=chosen.epochs)
    limit = chosen.sentences or (SMALL_SENTENCES if chosen.small else None)
    console = Console(stderr=True, highlight=False)
    result = distil(chosen.model, chosen.out, chosen.data, recipe, limit, console)
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
