"""How well a draft guesses what the model answers: the feature behind `Workload.agreement`.

The draft reads prompt and finished answer once, and is right wherever its likeliest next id is the
one that came. That takes one pass for each request, and none of the model itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from veilrun.node import model_run
from veilrun.node.model_run import ModelRun
from veilrun.tune.workload import Ask


def agreement(draft: Path, asks: Sequence[Ask], answers: Sequence[Sequence[int]]) -> float:
    """The share of all answers' ids that the draft guesses right, from 0 to 1; 0 of no answers.

    draft: its folder. answers: the model's, one for each request.

    Raises:
        CheckpointError: the folder holds no readable model.
    """
    model = model_run.load(draft, ModelRun())
    n_right = n_ids = 0
    for ask, answer in zip(asks, answers, strict=True):
        ids = torch.tensor([[*ask.token_ids, *answer]], device=model.device)
        with torch.inference_mode():
            guesses = model(ids).logits[0, len(ask.token_ids) - 1 : -1].argmax(-1)
        n_right += int((guesses == ids[0, len(ask.token_ids) :]).sum())
        n_ids += len(answer)
    return n_right / n_ids if n_ids else 0.0
