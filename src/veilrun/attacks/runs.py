"""Checkpoints that run: the attacker's engine, for plain and encrypted models alike."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from veilrun.attacks.weights import Ids
from veilrun.errors import CheckpointError

_BATCH_TOKENS: Final = 4096
_BATCH_TEXTS: Final = 64


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

    def next_states(self, prefix: Ids, candidates: Ids, depth: int) -> npt.NDArray[np.float32]:
        """[candidates, hidden]: what enters layer `depth` where each candidate follows `prefix`."""
        inner, parts = self._model.base_model, []
        with torch.inference_mode():
            read = (
                inner(torch.from_numpy(prefix)[None], use_cache=True).past_key_values
                if len(prefix)
                else None
            )
            step = max(1, _BATCH_TOKENS // (len(prefix) + 1))
            for start in range(0, len(candidates), step):
                block = torch.from_numpy(candidates[start : start + step])[:, None]
                cache = copy.deepcopy(read)
                if cache is not None:
                    cache.batch_repeat_interleave(len(block))
                answer = inner(
                    block, past_key_values=cache, use_cache=True, output_hidden_states=True
                )
                parts.append(answer.hidden_states[depth][:, 0].float().numpy())
        return np.concatenate(parts)

    @property
    def max_length(self) -> int:
        """Of a text, in tokens."""
        return int(self._model.config.max_position_embeddings)

    def sample(self, n_texts: int, length: int, *, temperature: float, seed: int) -> list[Ids]:
        """Texts that the model writes by itself, from its first token on, seeded.

        length: of a text, in tokens, if the model does not end it before.
        """
        generator = torch.Generator().manual_seed(seed)
        sizes = [min(_BATCH_TEXTS, n_texts - done) for done in range(0, n_texts, _BATCH_TEXTS)]
        rows = [
            row
            for size in sizes
            for row in self._written(size, length, temperature, generator).numpy()
        ]
        return [_up_to_end(row, self._ends) for row in rows]

    def _written(
        self, n_texts: int, length: int, temperature: float, generator: torch.Generator
    ) -> torch.Tensor:
        """[n_texts, length]; what follows an end has no meaning."""
        written = [torch.full((n_texts, 1), self._start)]
        cache = None
        with torch.inference_mode():
            while len(written) < length:
                answer = self._model(written[-1], past_key_values=cache, use_cache=True)
                cache = answer.past_key_values
                chances = (answer.logits[:, -1].double() / temperature).softmax(-1)
                written.append(torch.multinomial(chances, 1, generator=generator))
        return torch.cat(written, dim=1)

    @property
    def _start(self) -> int:
        """The token that a text opens with: some models have only one for its end."""
        config = self._model.config
        first = config.bos_token_id if config.bos_token_id is not None else config.eos_token_id
        return int(first[0] if isinstance(first, list) else first or 0)

    @property
    def _ends(self) -> list[int]:
        end = self._model.config.eos_token_id
        return end if isinstance(end, list) else [] if end is None else [end]

    def _each(self, ids: Sequence[Ids], ask: Any) -> list[npt.NDArray[np.float32]]:
        results: list[npt.NDArray[np.float32]] = [np.empty((0, 0), np.float32)] * len(ids)
        for places in _batches(ids):
            batch = torch.from_numpy(np.stack([ids[place] for place in places]))
            with torch.inference_mode():
                answers = ask(batch).float().numpy()
            for place, answer in zip(places, answers, strict=True):
                results[place] = answer.copy()
        return results


def _up_to_end(text: Ids, ends: Sequence[int]) -> Ids:
    """With its end, if it has one; the first token may be the same and is none."""
    places = np.flatnonzero(np.isin(text[1:], ends))
    return text[: places[0] + 2] if len(places) else text


def _batches(ids: Sequence[Ids]) -> Iterator[list[int]]:
    """Places of texts of one length, so that nothing needs padding."""
    by_length: dict[int, list[int]] = {}
    for place, text in enumerate(ids):
        by_length.setdefault(len(text), []).append(place)
    for length, places in by_length.items():
        step = max(1, _BATCH_TOKENS // max(length, 1))
        for start in range(0, len(places), step):
            yield places[start : start + step]
