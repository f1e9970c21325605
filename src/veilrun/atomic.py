"""Files and folders appear whole or not at all.

Everything is written under a temporary name beside its target, flushed to disk, then
renamed. A crash, a full disk or Ctrl-C leaves the target as it was.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from veilrun.errors import StorageError, UsageError


def write_file(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Replace `path` by `content` in one step, with permission bits `mode` from the first byte.

    Raises:
        StorageError: the disk is full, or the folder cannot be written.
    """
    temporary = _temporary_name(path)
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)  # the umask may have removed bits
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)  # gone already when all went well


@contextlib.contextmanager
def new_folder(path: Path, *, replace: bool = False, mode: int = 0o777) -> Iterator[Path]:
    """Yield an empty folder that becomes `path` when the block ends without an exception.

    replace: an existing folder gives way then, and only then. mode: its permission bits from the
    start, less those of the umask.

    Raises:
        UsageError: `path` exists already; nothing of it is touched.
        StorageError: the disk is full, or the parent cannot be written; nothing is left behind.
    """
    if not replace and (path.exists() or path.is_symlink()):
        raise UsageError(f"{path} exists already; choose another name or remove it first")
    temporary, old = _temporary_name(path), _temporary_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir(mode)
        yield temporary
        if replace and path.exists():
            path.rename(old)
        temporary.rename(path)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _temporary_name(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
