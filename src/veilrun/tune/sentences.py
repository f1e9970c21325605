"""Sentences to vectors with a BERT-like encoder: mean of the last states, of length 1."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from veilrun.errors import UsageError
from veilrun.tune.scenario import Floats
from veilrun.tune.selectors.texts import Embedder


def embedder(folder: Path) -> Embedder:
    """The encoder in a Hugging Face folder; a sentence is embedded once and remembered.

    Raises:
        UsageError: there is no encoder that transformers reads.
    """
    import transformers

    transformers.logging.disable_progress_bar()
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = transformers.AutoModel.from_pretrained(
            folder, local_files_only=True, use_safetensors=True
        ).eval()
    except (OSError, ValueError) as error:
        raise UsageError(f"{folder} holds no encoder that transformers reads") from error
    known: dict[str, Floats] = {}

    def embed(sentences: Sequence[str]) -> Floats:
        for sentence in sentences:
            if sentence not in known:
                known[sentence] = _embed(tokenizer, model, sentence)
        return np.stack([known[sentence] for sentence in sentences])

    return embed


def _embed(tokenizer: object, model: object, sentence: str) -> Floats:
    import torch

    with torch.inference_mode():
        inputs = tokenizer(sentence, return_tensors="pt", truncation=True)  # type: ignore[operator]
        states = model(**inputs).last_hidden_state[0]  # type: ignore[operator]
    mean = states.mean(0).double().numpy()
    return np.asarray(mean / np.linalg.norm(mean), np.float64)
