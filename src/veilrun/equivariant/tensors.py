"""Bytes of a checkpoint as torch tensors, and back, without copies."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from veilrun.checkpoint.folder import Checkpoint

TORCH_DTYPES: Final = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
"""The dtypes whose tensors a key can transform, by their safetensors names."""


def read_vector(checkpoint: Checkpoint, name: str) -> Tensor:
    """[n] float64: a one-dimensional tensor."""
    dtype = TORCH_DTYPES[checkpoint[name].dtype]
    return torch.frombuffer(checkpoint.read(name), dtype=dtype).double()


def read_matrix(checkpoint: Checkpoint, name: str) -> Tensor:
    """[rows, columns] in the dtype of the file."""
    info = checkpoint[name]
    stored = torch.frombuffer(checkpoint.read(name), dtype=TORCH_DTYPES[info.dtype])
    return stored.view(info.shape)


def read_rows(checkpoint: Checkpoint, name: str, start: int, stop: int) -> Tensor:
    """[stop - start, columns]: some rows of a matrix, in the dtype of the file."""
    info = checkpoint[name]
    dtype, n_columns = TORCH_DTYPES[info.dtype], info.shape[1]
    row_bytes = n_columns * dtype.itemsize
    stored = checkpoint.read_range(name, start * row_bytes, stop * row_bytes)
    return torch.frombuffer(stored, dtype=dtype).view(-1, n_columns)


def as_bytes(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor."""
    return tensor.contiguous().view(torch.uint8).numpy().data.cast("B")
