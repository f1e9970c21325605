"""stories260K with wider attention heads: the same function in a shape that vLLM computes on CPUs.

A head of 8 channels becomes one of `head_dim`: rotary plane i moves to plane i * head_dim / 8,
which turns at the same frequency, the new channels are zero, and the queries are scaled so that
the softmax sees the same numbers. All factors are powers of two: nothing is rounded.
"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


def widen_heads(source: Path, target: Path, head_dim: int = 32) -> None:
    """Write `source`, a Llama checkpoint, to `target` with heads of `head_dim` channels."""
    config = json.loads((source / "config.json").read_text())
    old, step = config["head_dim"], head_dim // config["head_dim"]
    kept = [half + i * step for half in (0, head_dim // 2) for i in range(old // 2)]

    def widen(name: str, weight: torch.Tensor) -> torch.Tensor:
        projection = name.split(".")[-2]
        if projection in {"q_proj", "k_proj", "v_proj"}:
            heads = weight.view(-1, old, weight.shape[1])
            wide = torch.zeros(heads.shape[0], head_dim, weight.shape[1])
            wide[:, kept] = heads * (math.sqrt(step) if projection == "q_proj" else 1.0)
            return wide.flatten(0, 1)
        if projection == "o_proj":
            heads = weight.view(weight.shape[0], -1, old)
            wide = torch.zeros(weight.shape[0], heads.shape[1], head_dim)
            wide[:, :, kept] = heads
            return wide.flatten(1)
        return weight

    target.mkdir(parents=True)
    tensors = load_file(source / "model.safetensors")
    widened = {name: widen(name, weight) for name, weight in tensors.items()}
    save_file(widened, target / "model.safetensors", metadata={"format": "pt"})
    (target / "config.json").write_text(json.dumps({**config, "head_dim": head_dim}))
    shutil.copyfile(source / "generation_config.json", target / "generation_config.json")
