"""All that decides a result, as one digest: the subject, the attacks' code, the settings.

Invariant: two audits with one digest would find the same, so the second may take what the first
has found.
"""

from __future__ import annotations

import functools
import hashlib
import json
import platform
from collections.abc import Iterator
from importlib import metadata
from importlib.resources import files
from typing import Final

import numpy as np
import numpy.typing as npt

import veilrun
from veilrun.attacks.subject import Subject
from veilrun.attacks.weights import Weights

_SOFTWARE: Final = ("numpy", "scipy", "torch", "transformers")


def software() -> dict[str, str]:
    """Versions of what computes, by name."""
    versions = {name: metadata.version(name) for name in _SOFTWARE}
    return {"veilrun": veilrun.__version__, "python": platform.python_version(), **versions}


def digest_of(subject: Subject, n_pairs: int) -> bytes:
    """32 bytes."""
    digest = hashlib.sha256(_code())
    plain = [n_pairs, subject.fine_tuned, sorted(subject.special), sorted(subject.corpora)]
    digest.update(json.dumps([plain, software()]).encode())
    arrays: list[npt.NDArray[np.generic]] = [subject.sealed.order, *subject.secret]
    arrays += [text for name in sorted(subject.corpora) for text in subject.corpora[name]]
    arrays += [copy.order for copy in subject.copies]  # they come from the same key each time
    for weights in (subject.sealed.model.weights, subject.base.weights):
        arrays += _tables(weights)
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).data)
    return digest.digest()


def _tables(weights: Weights) -> Iterator[npt.NDArray[np.generic]]:
    yield weights.embedding
    if weights.head is not None:
        yield weights.head
    for layer in weights.layers:
        for tables in (layer.readers, layer.writers):
            yield from (tables[axis] for axis in sorted(tables))


@functools.cache
def _code() -> bytes:
    """A digest of the attacks' own source, so that a better attack is tried anew."""
    digest = hashlib.sha256()
    package = files("veilrun.attacks")
    for folder in (package, package / "methods"):
        for file in sorted(folder.iterdir(), key=lambda one: one.name):
            if file.name.endswith(".py") and not file.name.startswith("card"):
                digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.digest()
