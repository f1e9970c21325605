"""Fine-tune a small causal language model on a text: a private model whose base is public.

    python training/finetune_stories.py MODEL OUT --text FILE --steps N

MODEL is any Hugging Face folder of a causal language model with a tokenizer, such as
stories260K; OUT becomes another one of the same shape. Every weight is trained, the embedding
too, as a full fine-tune does. The last tenth of the text is never trained on: the loss on its
beginning is reported, before and after.

Invariants: the seed and the number of threads decide every weight on one machine, and OUT appears
whole or not at all.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from veilrun.atomic import new_folder

HELD_OUT = 0.1  # share of the text, at its end
HELD_OUT_WINDOWS = 16


@dataclass(frozen=True)
class Recipe:
    """How to train."""

    steps: int = 200
    rate: float = 5e-4  # falls to zero along half a cosine
    batch: int = 4
    window: int = 128  # tokens
    weight_decay: float = 0.01
    seed: int = 1


def read_tokens(path: Path, tokenizer: Any, recipe: Recipe) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens to train on, and those held out, [windows, window]."""
    text = path.read_text(encoding="utf-8")
    cut = int(len(text) * (1 - HELD_OUT))
    train, rest = (
        torch.tensor(tokenizer(part, add_special_tokens=False)["input_ids"])
        for part in (text[:cut], text[cut:])
    )
    n_windows = min(HELD_OUT_WINDOWS, len(rest) // recipe.window)
    if n_windows == 0 or len(train) <= recipe.window:
        raise SystemExit(f"{path}: too short, its tenth must hold {recipe.window} tokens")
    return train, rest[: n_windows * recipe.window].view(n_windows, recipe.window)


@torch.no_grad()
def loss_of(model: Any, windows: torch.Tensor) -> float:
    """Nats per token."""
    model.eval()
    return float(model(input_ids=windows, labels=windows).loss)


def train(model: Any, tokens: torch.Tensor, recipe: Recipe) -> None:
    """Train in place."""
    model.train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.rate, weight_decay=recipe.weight_decay
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(recipe.steps, 1))
    random = np.random.default_rng(recipe.seed)
    for _ in range(recipe.steps):
        starts = random.integers(len(tokens) - recipe.window, size=recipe.batch)
        batch = torch.stack([tokens[start : start + recipe.window] for start in starts])
        model(input_ids=batch, labels=batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()


def finetune(base: Path, out: Path, text: Path, recipe: Recipe) -> dict[str, float | int]:
    """Train, write the folder `out`, and say what it changed."""
    began = time.monotonic()
    torch.manual_seed(recipe.seed)
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    tokens, held_out = read_tokens(text, tokenizer, recipe)
    with new_folder(out) as folder:
        before = loss_of(model, held_out)
        train(model, tokens, recipe)
        after = loss_of(model, held_out)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return {
        "loss_before": round(before, 4),
        "loss_after": round(after, 4),
        "steps": recipe.steps,
        "seed": recipe.seed,
        "seconds": round(time.monotonic() - began, 1),
    }


def main() -> None:
    """Read the arguments, fine-tune, print one line of JSON."""
    parser = argparse.ArgumentParser(description="Fine-tune a causal language model on a text.")
    parser.add_argument("model", type=Path, help="folder of the base, with its tokenizer")
    parser.add_argument("out", type=Path, help="folder for the fine-tune; must not exist")
    parser.add_argument("--text", type=Path, required=True, help="what to train on")
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    parser.add_argument("--rate", type=float, default=Recipe.rate)
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    parser.add_argument("--threads", type=int, default=2)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    recipe = Recipe(steps=chosen.steps, rate=chosen.rate, seed=chosen.seed)
    sys.stdout.write(json.dumps(finetune(chosen.model, chosen.out, chosen.text, recipe)) + "\n")


if __name__ == "__main__":
    main()
