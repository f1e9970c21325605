"""A few tensors of one safetensors file as numpy numbers, for who has no torch.

Invariant: what comes back is float32, whatever the file holds; other dtypes are refused by name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from veilrun.checkpoint.format import SafetensorsFile
from veilrun.errors import CheckpointError

_DTYPES: Final[dict[str, np.dtype[Any]]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
}


def read_tables(path: Path) -> dict[str, npt.NDArray[np.float32]]:
    """Every tensor of the file, by name.

    Raises:
        CheckpointError: the file is missing or damaged, or holds other numbers than floats.
    """
    file = SafetensorsFile(path)
    try:
        return {name: _read(file, name) for name in file.infos}
    finally:
        file.close()


def _read(file: SafetensorsFile, name: str) -> npt.NDArray[np.float32]:
    info = file.infos[name]
    if info.dtype not in _DTYPES:
        raise CheckpointError(f"{file.path}: {name} has dtype {info.dtype}, not a float")
    stored: npt.NDArray[Any] = np.frombuffer(file.read(name), dtype=_DTYPES[info.dtype]).reshape(
        info.shape
    )
    if info.dtype == "BF16":  # the upper half of a float32
        stored = (stored.astype(np.uint32) << 16).view(np.float32)
    result: npt.NDArray[np.float32] = stored.astype(np.float32)
    return result
