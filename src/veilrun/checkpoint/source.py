"""MODEL on the command line: a folder, or a hub id that becomes one."""

from __future__ import annotations

from pathlib import Path

from veilrun.checkpoint.folder import TOKENIZER_FILES
from veilrun.errors import TransportError, UsageError


def resolve(model: str | Path) -> Path:
    """The folder of `model`; a hub id is fetched (safetensors, config and tokenizer only).

    Raises:
        UsageError: neither a folder nor a hub id that exists.
        TransportError: the hub cannot be reached.
    """
    folder = Path(model)
    if folder.is_dir():
        return folder
    name = str(model)
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or folder.exists():
        raise UsageError(f"{name} is not a folder with a checkpoint")
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
        from huggingface_hub.errors import RepositoryNotFoundError as NotFoundError
    except ImportError:
        raise UsageError(f"{name} is not a folder; hub ids need veilrun[encrypt]") from None
    wanted = ["*.safetensors", "*.safetensors.index.json", "*config.json", *TOKENIZER_FILES]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted))
    except (HFValidationError, NotFoundError) as error:
        raise UsageError(f"{name} is neither a folder nor a model on the hub") from error
    except (LocalEntryNotFoundError, OSError) as error:
        raise TransportError(
            f"{name} is not a folder, and the hub could not be reached to fetch it"
        ) from error
