"""What may lie in a folder that a node serves: an encrypted checkpoint and nothing more.

A tokenizer would turn cipher ids into text for whoever reads the disk together with a leaked
permutation; a key file is the permutation; a client kit names the plain model; pickled weights
run code when they are loaded.

Invariant: `open_folder` returns the manifest of a folder in which it found none of these. Files
are judged by name, except key files and client kits, which carry a mark and any name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from veilrun.checkpoint.folder import Checkpoint, read_manifest
from veilrun.checkpoint.merkle import weights_root
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
_MARKS: Final = {b'"veilrun-key"': "key", b'"veilrun-client-kit"': "client kit"}
_MARKED_FILE_MAX_BYTES: Final = 65536


class _AbandonedError(Exception):
    """Nobody waits for the result any more; never leaves the thread that computes it."""


def open_folder(folder: Path) -> Manifest:
    """The manifest of the encrypted checkpoint in `folder`.

    Raises:
        RefusedError: the folder, or one below it, holds a tokenizer, pickled weights, a key
            or a client kit.
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


def verify_weights(
    folder: Path, manifest: Manifest, is_abandoned: Callable[[], bool] = lambda: False
) -> None:
    """Hold the weights in `folder` against the root in its manifest; reads every byte of them.

    is_abandoned: asked after every tensor, from any thread; True ends the work with an error.

    Raises:
        CheckpointError: they are not those that `veilrun encrypt` wrote, or cannot be read.
    """

    def go_on(_: int) -> None:
        if is_abandoned():
            raise _AbandonedError

    with Checkpoint(folder) as weights:
        found = weights_root(weights, go_on).hex()
    if found != manifest.weights_root:
        raise CheckpointError(
            f"{folder}: the weights are not those that `veilrun encrypt` wrote (their root is "
            f"{found}, the manifest names {manifest.weights_root}): damaged copy?"
        )


def _forbidden(folder: Path) -> Iterator[str]:
    for path in sorted(folder.rglob("*")):
        name = path.name.lower()
        kind = None
        if any(fnmatchcase(name, pattern) for pattern in _TOKENIZERS):
            kind = "tokenizer"
        elif any(fnmatchcase(name, pattern) for pattern in _PICKLES):
            kind = "pickle"
        elif path.is_file():
            kind = _marked(path)
        if kind is not None:
            yield f"{path.relative_to(folder)} ({kind})"


def _marked(path: Path) -> str | None:
    """What a small file says it is, if that is a secret."""
    try:
        if path.stat().st_size > _MARKED_FILE_MAX_BYTES:
            return None
        content = path.read_bytes()
        return next((kind for mark, kind in _MARKS.items() if mark in content), None)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
