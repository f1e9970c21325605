"""Models to measure on: many shapes, weights at random, answers that repeat where we say so.

No layer of an untrained model knows text, but all of them compute, and speed asks for no more.
One thing must be lifelike: how often an answer repeats itself. So the head is made from the
embedding: what follows id t is `successor[t]`, whatever the layers add. Ids below `N_LOOPING` form
loops of `LOOP` ids, all others one long round: a prompt whose last id is small gets an answer that
goes in circles, any other an answer without a repetition.

A draft is a model of one layer with the same successors, but for a share of them it is wrong.

Invariant: the same specimen gives the same files everywhere, up to rounding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

N_LOOPING: Final = 240
LOOP: Final = 12
_CONTRAST: Final = 40.0
"""Logit of the successor: far above what the layers' noise adds."""

MAX_TOKENS: Final = 1024


@dataclass(frozen=True, slots=True)
class Specimen:
    """One model to make. draft_accuracy: share of ids its draft is right on; None: no draft."""

    name: str
    family: str
    n_layers: int
    hidden: int
    n_heads: int
    n_kv_heads: int
    vocab_size: int
    draft_accuracy: float | None = None

    @property
    def size(self) -> int:
        """Layers times the square of the hidden size: a twelfth of the layers' weights, about."""
        return self.n_layers * self.hidden**2


SPECIMENS: Final = (
    Specimen("llama-2x128", "llama", 2, 128, 4, 4, 2048),
    Specimen("llama-5x64", "llama", 5, 64, 4, 2, 1024, 0.8),
    Specimen("llama-4x256", "llama", 4, 256, 8, 8, 4096),
    Specimen("llama-6x256", "llama", 6, 256, 4, 2, 8192, 0.95),
    Specimen("llama-12x256", "llama", 12, 256, 4, 4, 4096, 0.6),
    Specimen("llama-4x384", "llama", 4, 384, 6, 6, 4096),
    Specimen("llama-8x384", "llama", 8, 384, 6, 2, 8192, 0.9),
    Specimen("llama-5x512", "llama", 5, 512, 8, 8, 8192, 0.7),
    Specimen("llama-3x640", "llama", 3, 640, 10, 5, 16384),
    Specimen("llama-2x768", "llama", 2, 768, 12, 4, 4096),
    Specimen("gpt2-4x256", "gpt2", 4, 256, 4, 4, 4096),
    Specimen("gpt2-5x384", "gpt2", 5, 384, 6, 6, 8192, 0.8),
    Specimen("gpt2-6x512", "gpt2", 6, 512, 8, 8, 8192),
    Specimen("qwen2-6x320", "qwen2", 6, 320, 5, 1, 16384),
    Specimen("qwen2-8x384", "qwen2", 8, 384, 6, 2, 8192, 0.95),
)


def make(specimen: Specimen, folder: Path) -> None:
    """Write the model into `folder`, and its draft, if it has one, into `folder/draft`."""
    successor = _successors(specimen.vocab_size)
    _write(_config(specimen), successor, folder)
    if specimen.draft_accuracy is not None:
        random = np.random.default_rng(specimen.vocab_size)
        wrong = random.random(len(successor)) >= specimen.draft_accuracy
        guesses = successor.copy()
        guesses[wrong] = np.roll(successor[wrong], 1)  # still one row of the head for each id
        draft = Specimen("draft", specimen.family, 1, 128, 4, 4, specimen.vocab_size)
        _write(_config(draft), guesses, folder / "draft")


def _successors(vocab_size: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """What follows each id: int64 [V], a permutation of loops and one long round."""
    looping = np.arange(N_LOOPING).reshape(-1, LOOP)
    successor = np.empty(vocab_size, dtype=np.int64)
    successor[looping] = np.roll(looping, -1, axis=1)
    around = N_LOOPING + np.random.default_rng(vocab_size).permutation(vocab_size - N_LOOPING)
    successor[around] = np.roll(around, -1)
    return successor


def _config(specimen: Specimen) -> Any:
    import transformers

    common: Mapping[str, Any] = {
        "vocab_size": specimen.vocab_size,
        "bos_token_id": None,
        "eos_token_id": None,
        "tie_word_embeddings": False,
    }
    if specimen.family == "gpt2":
        return transformers.GPT2Config(
            n_layer=specimen.n_layers,
            n_embd=specimen.hidden,
            n_head=specimen.n_heads,
            n_positions=MAX_TOKENS,
            **common,
        )
    kinds = {"llama": transformers.LlamaConfig, "qwen2": transformers.Qwen2Config}
    return kinds[specimen.family](
        num_hidden_layers=specimen.n_layers,
        hidden_size=specimen.hidden,
        num_attention_heads=specimen.n_heads,
        num_key_value_heads=specimen.n_kv_heads,
        intermediate_size=specimen.hidden * 8 // 3 // 32 * 32,
        max_position_embeddings=MAX_TOKENS,
        **common,
    )


def _write(config: Any, successor: np.ndarray[Any, np.dtype[np.int64]], folder: Path) -> None:
    import torch
    import transformers

    transformers.logging.disable_progress_bar()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config)
        rows = torch.randn(config.vocab_size, config.hidden_size)
    with torch.no_grad():
        model.get_input_embeddings().weight.copy_(rows)
        head = model.get_output_embeddings().weight
        head[torch.from_numpy(successor)] = rows * (_CONTRAST / config.hidden_size)
    model.save_pretrained(folder)
