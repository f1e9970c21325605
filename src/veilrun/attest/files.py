"""Files of evidence and endorsements: what each is, its content says, not its name.

Everything else in this package takes bytes; only this module opens files.

Invariant: content gives a value or `DecodeError`; a file that cannot be read is a `UsageError`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from veilrun.attest.bundle import MAX_BYTES, Bundle, decode_bundle, is_bundle
from veilrun.attest.endorsements import Endorsements, joined
from veilrun.attest.formats import read_endorsements
from veilrun.attest.kinds import read_evidence
from veilrun.attest.policy import AllOf
from veilrun.attest.policy_file import parse_policy
from veilrun.errors import DecodeError, UsageError

_MAX_FILES: Final = 512


def read(data: bytes) -> Bundle:
    """The evidence or endorsements in `data`.

    Raises:
        DecodeError: of no known form, or malformed.
        UsageError: a library is missing.
    """
    if len(data) > MAX_BYTES:
        raise DecodeError(f"{len(data)} bytes, over {MAX_BYTES}")
    if is_bundle(data):
        return decode_bundle(data)
    endorsements = read_endorsements(data)
    if endorsements is not None:
        return Bundle(endorsements=endorsements)
    evidence = read_evidence(data)
    if not evidence:
        raise DecodeError("neither evidence nor an endorsement of a known form")
    return Bundle(evidence)


def load(path: Path) -> Bundle:
    """What is in the file at `path`; errors name it.

    Raises:
        UsageError: it cannot be read, or a library is missing.
        DecodeError: as `read`.
    """
    data = _content(path)
    try:
        return read(data)
    except DecodeError as error:
        raise DecodeError(f"{path}: {error}", error.field) from error


def load_evidence(paths: Iterable[Path]) -> Bundle:
    """The evidence in these files, all of one machine.

    Raises:
        UsageError: a file has none; and as `load`.
    """
    total = Bundle()
    for path in paths:
        found = load(path)
        if not found.evidence:
            raise UsageError(f"{path} is no evidence; give what vendors say by --with")
        total = total + found
    return total


def load_endorsements(paths: Iterable[Path]) -> Endorsements:
    """What vendors say in these files, and in all files of these folders.

    Raises:
        UsageError: a file has evidence, there are too many; and as `load`.
    """
    parts = []
    for path in _files(paths):
        found = load(path)
        if found.evidence:
            raise UsageError(f"{path} is evidence; name it before the options, to be verified")
        parts.append(found.endorsements)
    return joined(parts)


def load_policy(path: Path) -> AllOf:
    """The policy in the TOML file at `path`.

    Raises:
        UsageError: it cannot be read, is not TOML, or says something unknown.
    """
    data = _content(path)
    try:
        return parse_policy(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not text") from error
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error


def _content(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from error


def _files(paths: Iterable[Path]) -> Iterator[Path]:
    n_files = 0
    for path in paths:
        for one in _inside(path) if path.is_dir() else [path]:
            n_files += 1
            if n_files > _MAX_FILES:
                raise UsageError(f"over {_MAX_FILES} files of endorsements")
            yield one


def _inside(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise UsageError(f"cannot read {folder}: {error.strerror or error}") from error
