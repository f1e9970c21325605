"""MODEL on the command line: a folder, or a hub id that becomes one."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

from veilrun.checkpoint.folder import TOKENIZER_FILES
from veilrun.errors import StorageError, TransportError, UsageError


def resolve(
    model: str | Path, before_weights: Callable[[Path], None] = lambda folder: None
) -> Path:
    """The folder of `model`; a hub id is fetched (safetensors, config and tokenizer only).

    before_weights: sees the folder once the small files are there; may raise.

    Raises:
        UsageError: neither a folder nor a hub id that exists, or one that needs a login.
        TransportError: the hub cannot be reached.
    """
    folder = Path(model)
    if folder.is_dir():
        return folder
    name = str(model)
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or folder.exists():
        raise UsageError(f"{name} is not a folder with a checkpoint")
    before_weights(_fetch(name, ["*config.json", *TOKENIZER_FILES]))
    return _fetch(name, ["model*.safetensors", "model.safetensors.index.json", "*config.json"])


def _fetch(name: str, patterns: list[str]) -> Path:
    try:
        from huggingface_hub import errors, snapshot_download
    except ImportError:
        raise UsageError(f"{name} is not a folder; hub ids need veilrun[encrypt]") from None
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except errors.GatedRepoError as error:
        raise UsageError(f"{name} is gated: log in to the hub with access to it first") from error
    except (errors.HFValidationError, errors.RepositoryNotFoundError) as error:
        raise UsageError(f"{name} is neither a folder nor a model on the hub") from error
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise StorageError(f"the disk is full: {name} could not be fetched") from error
        raise TransportError(
            f"{name} is not a folder, and the hub could not be reached to fetch it"
        ) from error
