"""What may lie in a folder that a node serves: an encrypted checkpoint and nothing more.

A tokenizer would turn cipher ids into text for whoever reads the disk together with a leaked
permutation; a key file is the permutation; pickled weights run code when they are loaded.

Invariant: `open_folder` returns the manifest of a folder in which it found none of these. Files
are judged by name, except key files, which users name as they like.
"""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from veilrun.checkpoint.folder import read_manifest
from veilrun.errors import CheckpointError, RefusedError
from veilrun.wire.manifest import Manifest

_TOKENIZERS: Final = (
    "*tokenizer*",
    "*sentencepiece*",
    "*.tiktoken",
    "*.spm",
    "*.gguf",  # carries its vocabulary
    "added_tokens.json",
    "bpe.codes",
    "chat_template*",
    "encoder.json",
    "merges.txt",
    "special_tokens_map.json",
    "spiece.model",
    "tekken.json",
    "vocab.*",
    "vocab-*",
)
_PICKLES: Final = ("*.bin", "*.ckpt", "*.pickle", "*.pkl", "*.pt", "*.pth")
_KEY_MARK: Final = b'"veilrun-key"'
_KEY_FILE_MAX_BYTES: Final = 65536


def open_folder(folder: Path) -> Manifest:
    """The manifest of the encrypted checkpoint in `folder`.

    Raises:
        RefusedError: the folder, or one below it, holds a tokenizer, pickled weights or a key.
        CheckpointError: there is no manifest, or it does not parse.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder")
    found = list(_forbidden(folder))
    if found:
        raise RefusedError(
            f"a node must not hold these: {', '.join(found)}; serve the folder that "
            "`veilrun encrypt` wrote, and nothing beside it"
        )
    return read_manifest(folder)


def _forbidden(folder: Path) -> Iterator[str]:
    for path in sorted(folder.rglob("*")):
        name = path.name.lower()
        kind = None
        if any(fnmatchcase(name, pattern) for pattern in _TOKENIZERS):
            kind = "tokenizer"
        elif any(fnmatchcase(name, pattern) for pattern in _PICKLES):
            kind = "pickle"
        elif path.is_file() and _is_key(path):
            kind = "key"
        if kind is not None:
            yield f"{path.relative_to(folder)} ({kind})"


def _is_key(path: Path) -> bool:
    try:
        if path.stat().st_size > _KEY_FILE_MAX_BYTES:
            return False
        return _KEY_MARK in path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
