"""Bytes of a checkpoint as numpy float32, checked.

Invariant: what `read` returns is finite; `check` has seen its shape and dtype before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
import numpy.typing as npt

from veilrun.checkpoint.folder import Checkpoint
from veilrun.errors import CheckpointError

Float32 = npt.NDArray[np.float32]


def _from_bfloat16(data: bytearray) -> Float32:
    """bfloat16 is the upper half of float32."""
    return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)


_TO_FLOAT32: Final[Mapping[str, Callable[[bytearray], Float32]]] = {
    "F32": lambda data: np.frombuffer(data, "<f4").astype(np.float32, copy=False),
    "F16": lambda data: np.frombuffer(data, "<f2").astype(np.float32),
    "BF16": _from_bfloat16,
}


def read(checkpoint: Checkpoint, name: str) -> Float32:
    """Tensor `name` in its stored shape."""
    info = checkpoint[name]
    values = _TO_FLOAT32[info.dtype](checkpoint.read(name)).reshape(info.shape)
    if not np.isfinite(values).all():
        raise CheckpointError(f"{name} holds values that are not finite")
    return values


def n_rows(checkpoint: Checkpoint, name: str) -> int:
    """Rows of a matrix whose number config.json does not give."""
    shape = checkpoint[name].shape
    if len(shape) != 2 or shape[0] == 0:
        raise CheckpointError(f"{name} is {list(shape)} and must have rows and columns")
    return shape[0]


def check(
    checkpoint: Checkpoint, stored: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """Raise CheckpointError that names every tensor of a wrong shape or dtype.

    stored: `module.part` -> the name in the checkpoint.
    shapes: of each module's weight, as stored; a bias measures the weight's rows.
    """
    wrong = []
    for plain, name in stored.items():
        module, _, part = plain.rpartition(".")
        want = shapes[module][:1] if part == "bias" else shapes[module]
        info = checkpoint[name]
        if info.shape != want:
            wrong.append(f"{name} is {list(info.shape)} and must be {list(want)}")
        elif info.dtype not in _TO_FLOAT32:
            wrong.append(f"{name} has dtype {info.dtype}, not one of {', '.join(_TO_FLOAT32)}")
    if wrong:
        raise CheckpointError(f"{checkpoint.folder}: " + "; ".join(wrong))
