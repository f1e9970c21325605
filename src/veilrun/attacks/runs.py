"""Checkpoints that run: the attacker's engine, for plain and encrypted models alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from veilrun.attacks.weights import Ids
from veilrun.errors import CheckpointError

_BATCH_TOKENS: Final = 4096


class Engine:
    """A causal language model in float32, by stock transformers."""

    def __init__(self, folder: Path) -> None:
        """Raises CheckpointError where transformers cannot load the folder."""
        from transformers import AutoModelForCausalLM

        try:
            model = AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.float32, local_files_only=True, use_safetensors=True
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{folder} cannot be loaded: {error}") from error
        self._model: Any = model.eval()

    def logits(self, ids: Sequence[Ids]) -> list[npt.NDArray[np.float32]]:
        """Of each text: [positions, vocabulary]."""
        return self._each(ids, lambda batch: self._model(batch).logits)

    def states(self, ids: Sequence[Ids], depth: int) -> list[npt.NDArray[np.float32]]:
        """Of each text: [positions, hidden], the residual stream that enters layer `depth`."""
        return self._each(
            ids, lambda batch: self._model(batch, output_hidden_states=True).hidden_states[depth]
        )

    def _each(self, ids: Sequence[Ids], ask: Any) -> list[npt.NDArray[np.float32]]:
        results: list[npt.NDArray[np.float32]] = [np.empty((0, 0), np.float32)] * len(ids)
        for places in _batches(ids):
            batch = torch.from_numpy(np.stack([ids[place] for place in places]))
            with torch.inference_mode():
                answers = ask(batch).float().numpy()
            for place, answer in zip(places, answers, strict=True):
                results[place] = answer.copy()
        return results


def _batches(ids: Sequence[Ids]) -> Iterator[list[int]]:
    """Places of texts of one length, so that nothing needs padding."""
    by_length: dict[int, list[int]] = {}
    for place, text in enumerate(ids):
        by_length.setdefault(len(text), []).append(place)
    for length, places in by_length.items():
        step = max(1, _BATCH_TOKENS // max(length, 1))
        for start in range(0, len(places), step):
            yield places[start : start + step]
