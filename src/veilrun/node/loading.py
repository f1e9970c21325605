"""Reading a checkpoint folder for the built-in engine: safetensors, no code, no tokenizer.

Invariant: nothing is fetched, nothing in the folder is executed, and a model is returned only
if every one of its weights was in the files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from veilrun.errors import CheckpointError, UsageError

_FUSED: Final = "sdpa"  # torch's own kernel: nothing to fetch, and never a table of all scores
_CPU_CACHE_BYTES: Final = 2 * 2**30
_CUDA_CACHE_SHARE: Final = 0.8
_DTYPES: Final = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


def load_config(folder: Path) -> Any:
    """The folder's configuration.

    Raises:
        CheckpointError: there is none that transformers reads.
    """
    _quieten()
    try:
        return transformers.AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except (
        StrictDataclassError, OSError, ValueError, TypeError, ArithmeticError, LookupError,
    ) as error:  # fmt: skip
        raise CheckpointError(f"{folder} has no configuration that transformers reads") from error


def load_model(
    folder: Path, device: torch.device, dtype: torch.dtype, attention: str = _FUSED
) -> Any:
    """The folder's model, ready to answer.

    Raises:
        CheckpointError: weights are missing, damaged, or not safetensors.
    """
    _quieten()
    model, missing = _load(transformers.AutoModelForCausalLM, folder, dtype, attention)
    _check_complete(folder, missing)
    return model.to(device).eval()


def load_middle(folder: Path, device: torch.device, dtype: torch.dtype) -> Any:
    """The folder's model without embedding and head: rows in, final states out.

    Raises:
        CheckpointError: other weights are missing, or damaged, or not safetensors.
    """
    _quieten()
    model, missing = _load(transformers.AutoModel, folder, dtype, _FUSED)
    embedding = model.get_input_embeddings().weight
    ends = {name for name, one in model.named_parameters() if one is embedding}
    _check_complete(folder, missing - ends)
    return model.to(device).eval()


def _load(kind: Any, folder: Path, dtype: torch.dtype, attention: str) -> tuple[Any, set[str]]:
    """The model, and the weights that were not in the files."""
    try:
        model, report = kind.from_pretrained(
            folder,
            dtype=dtype,
            attn_implementation=attention,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"cannot load the weights in {folder}: {error}") from error
    return model, set(report["missing_keys"])


def _check_complete(folder: Path, missing: set[str]) -> None:
    # transformers fills what is missing with random numbers and goes on.
    if missing:
        raise CheckpointError(f"{folder} lacks {len(missing)} weights, the first is {min(missing)}")


def end_ids(model: Any) -> tuple[int, ...]:
    """The model's own end ids, as its generation config or else its config names them."""
    for config in (model.generation_config, model.config.get_text_config()):
        ids = getattr(config, "eos_token_id", None)
        if ids is not None:
            ids = ids if isinstance(ids, list | tuple) else [ids]
            return tuple(int(one) for one in ids if one >= 0)
    return ()


def choose_device(name: str) -> torch.device:
    """The device called `name`; "auto" takes the first GPU if there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"{name!r} is not a device torch knows") from error


def choose_dtype(name: str, device: torch.device, config: Any) -> torch.dtype:
    """The dtype called `name`; "auto" is float32 on a CPU and the checkpoint's own on a GPU."""
    if name == "auto":
        own = _DTYPES.get(str(config.dtype).removeprefix("torch."), torch.bfloat16)
        return own if device.type == "cuda" else torch.float32
    if name not in _DTYPES:
        raise UsageError(f"{name!r} is not one of the dtypes auto, {', '.join(_DTYPES)}")
    return _DTYPES[name]


def default_cache_bytes(folder: Path, device: torch.device) -> int:
    """2 GiB on a CPU; on a GPU 80 % of what is free once the weights are there."""
    if device.type != "cuda":
        return _CPU_CACHE_BYTES
    free_bytes, _ = torch.cuda.mem_get_info(device)
    weights_bytes = sum(one.stat().st_size for one in folder.glob("*.safetensors"))
    return int(max(0, free_bytes - weights_bytes) * _CUDA_CACHE_SHARE)


def _quieten() -> None:
    """No progress bars, and no warnings: some of transformers' quote token ids."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
