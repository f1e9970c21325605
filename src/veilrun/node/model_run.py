"""How a model's own arithmetic runs, whichever engine batches it: device, numbers, threads.

Eight-bit weights are torch's dynamic quantisation: every `Linear`, the head included, keeps its
weights as one byte each, and rounds its input to one byte at every call. Answers differ a little
from the stored weights', so this is for who asked for it, on a CPU, over float32. An input is
rounded on one scale for all its rows and tokens, so an answer also differs a little with what is
computed beside it, other users' requests included. A layer that is no `Linear` stays as it is:
the experts of a mixture, GPT-2's `Conv1D`.

Invariant: the number of threads is set where the model runs. torch's setting is each thread's
own, except for threads that have not computed yet: those take whatever anybody set last.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from veilrun.errors import UsageError
from veilrun.node import loading
from veilrun.tune.arms import Attention, Weights

_ALL_THREADS: Final = torch.get_num_threads()
"""As torch starts: one per core, or what its own variables say."""

Loader = Callable[[], Any]
"""Gives a loaded model that is ready to run: another engine's, to share its weights."""


@dataclass(frozen=True, slots=True)
class ModelRun:
    """device: "auto" takes the first GPU if there is one.

    dtype: "auto" is float32 on a CPU (its bfloat16 is slow) and the checkpoint's own on a GPU.
    attention: torch's fused kernel, or a plain product of matrices.
    weights: "stored", or "int8": see the head of this file.
    n_threads: of the arithmetic on a CPU; None: as many as torch takes by itself.
    compiled: through torch.compile; the first requests then take up to a minute each.
    """

    device: str = "auto"
    dtype: str = "auto"
    attention: Attention = "sdpa"
    weights: Weights = "stored"
    n_threads: int | None = None
    compiled: bool = False

    def __post_init__(self) -> None:
        if self.weights == "int8" and self.compiled:
            raise UsageError("8-bit layers are not compiled: leave one of the two")
        if self.n_threads is not None and self.n_threads < 1:
            raise UsageError(f"{self.n_threads} threads compute nothing; give 1 or more")

    def place(self, config: Any) -> tuple[torch.device, torch.dtype]:
        """Where a model of this text configuration runs, and in which numbers.

        Raises:
            UsageError: there is no such device or dtype, or not for 8-bit weights.
        """
        device = loading.choose_device(self.device)
        dtype = loading.choose_dtype(self.dtype, device, config)
        if self.weights == "int8" and (device.type != "cpu" or dtype != torch.float32):
            raise UsageError(
                f"8-bit weights need a CPU and float32, not {device.type} and {dtype}; leave them "
                "as stored, or choose device cpu and dtype float32"
            )
        return device, dtype

    def use_threads(self) -> None:
        """Set this thread's number of threads. Call it on the thread that runs the model."""
        torch.set_num_threads(self.n_threads or _ALL_THREADS)


def load(folder: Path, run: ModelRun) -> Any:
    """The folder's model, ready to run. Of `run`, the number of threads is the engine's to set.

    Raises:
        CheckpointError: no readable config; weights are missing, damaged, or not safetensors.
        UsageError: `run` does not suit this machine.
    """
    device, dtype = run.place(loading.load_config(folder).get_text_config())
    model = loading.load_model(folder, device, dtype, run.attention)
    if run.weights == "int8":
        _quantise(model)
    if run.compiled:
        model.forward = torch.compile(model.forward, dynamic=True)
    return model


def take(folder: Path, run: ModelRun, loader: Loader | None) -> Any:
    """The model an engine runs: its own, or a shared one, with the attention it asked for."""
    model = loader() if loader is not None else load(folder, run)
    model.set_attn_implementation(run.attention)
    return model


def _quantise(model: Any) -> None:
    """8-bit weights, in place."""
    with warnings.catch_warnings():
        # Announced as moving to a package whose kernels do not load on every CPU.
        warnings.simplefilter("ignore")
        quantise: Any = torch.ao.quantization.quantize_dynamic  # it has no types
        quantise(model, {torch.nn.Linear}, dtype=torch.qint8, inplace=True)
