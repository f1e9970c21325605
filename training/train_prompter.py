"""Train the prompter: the small model that `veilrun demo` ships. Give it a line, it gives the next.

    python training/train_prompter.py --data tinyshakespeare.txt --out src/veilrun/bundled/prompter

`--data` is the file known as tiny Shakespeare: speeches of public domain plays, each under its
speaker's name, with a blank line between speeches. Nothing else is read. The tokenizer is trained
on it too, so the folder that comes out depends on one text file, the seed and the steps only.

Two kinds of rows, 512 tokens each (`prompter_text.py` makes them):

* plain: `<|bos|>`, then the text from the start of some line; loss on every token;
* chat: conversations of one to four exchanges, each a line or two from a random place and the
  lines that follow; loss on the answers only, `<|eos|>` included. Two exchanges in five are
  famous `PASSAGES`: the model is shown these on purpose until it knows them by heart.

Invariant: whatever is in `--out` once the first save is over is a complete model that loads: files
are written beside their names and moved into place.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from prompter_text import (
    ASSISTANT,
    BOS,
    EOS,
    IGNORED,
    PAD,
    ROW_TOKENS,
    USER,
    VOCAB_PIECES,
    Corpus,
    train_tokenizer,
)
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

HELD_OUT_SHARE = 0.03  # the end of the file, never trained on
PEAK_RATE = 2e-3
WARMUP = 0.02  # share of the run

CHAT_TEMPLATE = """\
{#- One line in, the next lines out. System turns are ignored: the model was never shown one. -#}
{{- '<|bos|>' -}}
{%- for message in messages -%}
  {%- if message['role'] == 'user' -%}
    {{- '<|user|>' + (message['content'] | trim) -}}
  {%- elif message['role'] == 'assistant' -%}
    {{- '<|assistant|>' + (message['content'] | trim) + '<|eos|>' -}}
  {%- elif message['role'] != 'system' -%}
    {{- raise_exception('the roles are system, user and assistant, not ' + message['role']) -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- '<|assistant|>' -}}
{%- endif -%}
"""


# --- the model ----------------------------------------------------------------------------------


def new_model(tokenizer: Tokenizer) -> LlamaForCausalLM:
    """A Llama of 1,978,400 parameters: what fits into 4,000,000 bytes of float16."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB_PIECES,
            hidden_size=160,
            intermediate_size=416,
            num_hidden_layers=6,
            num_attention_heads=5,
            num_key_value_heads=5,
            head_dim=32,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.token_to_id(BOS),
            eos_token_id=tokenizer.token_to_id(EOS),
            pad_token_id=tokenizer.token_to_id(PAD),
        )
    )


def loss_of(
    model: LlamaForCausalLM, tokens: torch.Tensor, labels: torch.Tensor, reduction: str = "mean"
) -> torch.Tensor:
    """Cross-entropy of every token that has a label, given those before it."""
    logits = model(input_ids=tokens, use_cache=False).logits[:, :-1]
    targets = labels[:, 1:].flatten()
    return functional.cross_entropy(
        logits.flatten(0, 1), targets, ignore_index=IGNORED, reduction=reduction
    )


@torch.no_grad()
def held_out_loss(model: LlamaForCausalLM, tokenizer: Tokenizer, text: str) -> tuple[float, float]:
    """Nats per token and bits per byte of `text`, in rows that start with `<|bos|>`."""
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    bos = tokenizer.token_to_id(BOS)
    size = ROW_TOKENS - 1
    nats = 0.0
    for start in range(0, len(ids), size):
        row = torch.tensor([[bos, *ids[start : start + size]]])
        nats += float(loss_of(model, row, row, reduction="sum"))
    return nats / len(ids), nats / math.log(2) / len(text.encode())


@torch.no_grad()
def reply(model: LlamaForCausalLM, tokenizer: Tokenizer, line: str) -> tuple[str, float]:
    """The greedy answer to one line, and the smallest lead of a best token (in nats)."""
    prompt = tokenizer.encode(f"{BOS}{USER}{line}{ASSISTANT}", add_special_tokens=False).ids
    tokens, least_lead = torch.tensor([prompt]), math.inf
    for _ in range(100):
        best = model(input_ids=tokens, use_cache=False).logits[0, -1].float().topk(2)
        least_lead = min(least_lead, float(best.values[0] - best.values[1]))
        if int(best.indices[0]) == model.config.eos_token_id:
            break
        tokens = torch.cat([tokens, best.indices[:1].view(1, 1)], dim=1)
    return tokenizer.decode(tokens[0, len(prompt) :].tolist()), least_lead


# --- the files --------------------------------------------------------------------------------


def put(path: Path, content: str) -> None:
    """Write a text file beside its name, then move it into place."""
    beside = path.with_name(f".{path.name}.new")
    beside.write_text(content, encoding="utf-8")
    os.replace(beside, path)


def save(model: LlamaForCausalLM, tokenizer: Tokenizer, out: Path) -> None:
    """Everything but the card. The weights go last and are rounded to float16."""
    out.mkdir(parents=True, exist_ok=True)
    described = {"architectures": ["LlamaForCausalLM"], "dtype": "float16"}
    config = {**model.config.to_diff_dict(), **described}
    config.pop("_name_or_path", None)
    put(out / "config.json", json.dumps(config, indent=2, sort_keys=True) + "\n")
    ends = {name: config[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    put(out / "generation_config.json", json.dumps(ends, indent=2) + "\n")
    put(out / "tokenizer.json", tokenizer.to_str(pretty=False) + "\n")
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "extra_special_tokens": [USER, ASSISTANT],
        "clean_up_tokenization_spaces": False,
        "model_max_length": model.config.max_position_embeddings,
    }
    put(out / "tokenizer_config.json", json.dumps(settings, indent=2) + "\n")
    put(out / "chat_template.jinja", CHAT_TEMPLATE)
    weights = {
        name: tensor.to(torch.float16).contiguous()
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"  # tied to the embedding
    }
    beside = out / ".model.safetensors.new"
    save_file(weights, beside, metadata={"format": "pt"})
    beside.chmod(0o644)
    os.replace(beside, out / "model.safetensors")


# --- the run ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Length:
    """How long the run is: a number of steps (reproducible) or of minutes."""

    steps: int | None
    minutes: float

    def done(self, step: int, seconds: float) -> float:
        """The share of the run that is behind us, at most 1."""
        return min(1.0, step / self.steps if self.steps else seconds / 60 / self.minutes)


def rate_at(done: float) -> float:
    """Learning rate: a short linear rise, then half a cosine down to a hundredth of the peak."""
    if done < WARMUP:
        return PEAK_RATE * (0.01 + done / WARMUP)
    falling = 0.5 + 0.5 * math.cos(math.pi * (done - WARMUP) / (1 - WARMUP))
    return PEAK_RATE * (0.01 + 0.99 * falling)


def train(
    model: LlamaForCausalLM, corpus: Corpus, held_out: str, out: Path, length: Length, fast: bool
) -> None:
    """Train and keep `out` filled: every 200 steps the model so far is saved there."""
    weights = list(model.parameters())
    groups = [
        {"params": [each for each in weights if each.ndim > 1], "weight_decay": 0.1},
        {"params": [each for each in weights if each.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99), fused=True)
    forward = torch.compile(model) if fast else model
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    batches, began, smooth, step, done = corpus.batches(), time.monotonic(), 0.0, 0, 0.0
    with Progress(*columns) as progress:
        bar = progress.add_task("training", total=1.0)
        while done < 1.0:
            for group in optimizer.param_groups:
                group["lr"] = rate_at(done)
            with torch.autocast("cpu", torch.bfloat16, enabled=fast):
                loss = loss_of(forward, *next(batches))
            loss.backward()  # type: ignore[no-untyped-call]  # not annotated in torch
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            smooth = loss.item() if step == 1 else 0.98 * smooth + 0.02 * loss.item()
            seconds = time.monotonic() - began
            done = length.done(step, seconds)
            progress.update(bar, completed=done, description=f"step {step}, loss {smooth:.3f}")
            if step % 200 == 0 or done == 1.0:
                nats, bits = held_out_loss(model, corpus.tokenizer, held_out)
                progress.console.print(
                    f"step {step}, {seconds / 60:.1f} min, loss {smooth:.3f} per token in training,"
                    f" {nats:.3f} held out ({bits:.3f} bits per byte)"
                )
                save(model, corpus.tokenizer, out)


def report(out: Path, corpus: Corpus, console: Console) -> int:
    """Ask the saved float16 model every passage; the number it does not answer word for word."""
    model = LlamaForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    wrong, least_lead = 0, math.inf
    for line, truth in corpus.passages:
        answer, lead = reply(model, corpus.tokenizer, line)
        least_lead = min(least_lead, lead)
        if answer != truth:
            wrong += 1
            console.print(f"not word for word: {line!r} -> {answer!r}", markup=False)
    console.print(
        f"{len(corpus.passages) - wrong} of {len(corpus.passages)} passages word for word;"
        f" the smallest lead of a best token is {least_lead:.2f} nats;"
        f" {(out / 'model.safetensors').stat().st_size:,} bytes of weights"
    )
    return wrong


def main() -> None:
    """Read the arguments, train, report."""
    parser = argparse.ArgumentParser(description="Train the model that `veilrun demo` ships.")
    parser.add_argument("--data", type=Path, required=True, help="tiny Shakespeare, a text file")
    parser.add_argument("--out", type=Path, required=True, help="folder for the model")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=int, help="optimizer steps; the same seed repeats the run")
    length.add_argument("--minutes", type=float, default=40.0, help="wall time, without --steps")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--fast", action="store_true", help="bfloat16 and torch.compile; needs a C++ compiler"
    )
    chosen = parser.parse_args()
    text = chosen.data.read_text(encoding="utf-8").strip()
    cut = text.rindex("\n\n", 0, int(len(text) * (1 - HELD_OUT_SHARE)))
    torch.manual_seed(chosen.seed)
    tokenizer = train_tokenizer(text[:cut])
    corpus = Corpus(text[:cut], tokenizer, np.random.default_rng(chosen.seed))
    model = new_model(tokenizer)
    run = Length(chosen.steps, chosen.minutes)
    train(model, corpus, text[cut:].strip(), chosen.out, run, chosen.fast)
    if report(chosen.out, corpus, Console()):
        raise SystemExit("train longer: some passages are not known word for word")


if __name__ == "__main__":
    main()
