"""Files and folders appear whole or not at all, whatever fails and whenever it fails."""

from __future__ import annotations

import errno
import os
import stat

import pytest

from veilrun import atomic
from veilrun.errors import StorageError, UsageError


def no_space(*_args: object, **_kwargs: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def interrupt(*_args: object, **_kwargs: object) -> None:
    raise KeyboardInterrupt


def mode_of(path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def open_umask():
    """A umask that removes nothing: permission bits are what the code asked for."""
    before = os.umask(0)
    yield
    os.umask(before)


# --- files --------------------------------------------------------------------------------


def test_a_file_is_written_and_replaced_whole(tmp_path):
    path = tmp_path / "file"
    atomic.write_file(path, b"first, and longer")
    assert path.read_bytes() == b"first, and longer"
    atomic.write_file(path, b"second")
    assert path.read_bytes() == b"second"
    assert list(tmp_path.iterdir()) == [path]


def test_a_secret_is_never_readable_by_others(tmp_path, monkeypatch, open_umask):
    """Looks at the permission bits at every step, the first byte not yet written included."""
    seen = []

    def spy(name: str) -> None:
        real = getattr(os, name)

        def call(first, *rest):
            seen.extend((name, stat.S_IMODE(one.stat().st_mode)) for one in tmp_path.iterdir())
            result = real(first, *rest)
            seen.extend((name, stat.S_IMODE(one.stat().st_mode)) for one in tmp_path.iterdir())
            return result

        monkeypatch.setattr(atomic.os, name, call)

    for name in ("open", "fchmod", "fsync"):
        spy(name)
    atomic.write_file(tmp_path / "key", b"secret", mode=0o600)
    assert {name for name, _ in seen} == {"open", "fchmod", "fsync"}
    assert {mode for _, mode in seen} == {0o600}
    assert mode_of(tmp_path / "key") == 0o600


def test_a_secret_replaces_a_file_that_others_could_read(tmp_path, open_umask):
    path = tmp_path / "key"
    path.write_bytes(b"old")
    path.chmod(0o666)
    atomic.write_file(path, b"secret", mode=0o600)
    assert mode_of(path) == 0o600


@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_the_mode_does_not_depend_on_the_umask(tmp_path, mode):
    before = os.umask(0o077)
    try:
        atomic.write_file(tmp_path / "file", b"", mode=mode)
    finally:
        os.umask(before)
    assert mode_of(tmp_path / "file") == mode


def fail_at(step: str, monkeypatch, failure=no_space) -> None:
    if step == "write":  # the disk fills up while bytes are on their way
        real = os.fdopen

        def fdopen(*args):
            file = real(*args)
            return _Full(file, failure)

        monkeypatch.setattr(atomic.os, "fdopen", fdopen)
    elif step == "rename":
        monkeypatch.setattr(atomic.Path, "replace", failure)
    else:
        monkeypatch.setattr(atomic.os, step, failure)


class _Full:
    """A file that takes three bytes and then fails."""

    def __init__(self, file, failure) -> None:
        self._file, self._failure = file, failure

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()

    def __getattr__(self, name):
        return getattr(self._file, name)

    def write(self, content: bytes) -> None:
        self._file.write(content[:3])
        self._failure()


STEPS = ("open", "fchmod", "write", "fsync", "rename")


@pytest.mark.parametrize("step", STEPS)
def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, step):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with monkeypatch.context() as broken:
        fail_at(step, broken)
        with pytest.raises(StorageError, match=r"cannot write .*file: No space left") as caught:
            atomic.write_file(path, b"new content")
    assert isinstance(caught.value.__cause__, OSError)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("step", STEPS)
def test_an_interrupt_leaves_the_old_file(tmp_path, monkeypatch, step):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with monkeypatch.context() as broken:
        fail_at(step, broken, interrupt)
        with pytest.raises(KeyboardInterrupt):
            atomic.write_file(path, b"new content")
    assert path.read_bytes() == b"old"


def test_a_folder_that_is_not_there_is_a_storage_error(tmp_path):
    with pytest.raises(StorageError, match="No such file or directory"):
        atomic.write_file(tmp_path / "absent" / "file", b"")
    assert list(tmp_path.iterdir()) == []


# --- folders ------------------------------------------------------------------------------


def test_a_folder_appears_when_it_is_complete(tmp_path):
    target = tmp_path / "parent" / "out"
    with atomic.new_folder(target) as folder:
        assert folder.parent == target.parent  # a rename, never a copy between disks
        assert list(folder.iterdir()) == []
        (folder / "shard").write_bytes(b"weights")
        (folder / "inner").mkdir()
        assert not target.exists()
    assert (target / "shard").read_bytes() == b"weights"
    assert (target / "inner").is_dir()
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("kind", ["file", "empty folder", "full folder", "dangling link"])
def test_what_exists_is_refused_and_not_touched(tmp_path, kind):
    target = tmp_path / "out"
    if kind == "file":
        target.write_bytes(b"mine")
    elif kind == "dangling link":
        target.symlink_to(tmp_path / "nowhere")
    else:
        target.mkdir()
        if kind == "full folder":
            (target / "mine").write_bytes(b"mine")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UsageError, match="out exists already"), atomic.new_folder(target):
        pytest.fail("the block must not run")
    assert sorted(tmp_path.rglob("*")) == before
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt, UsageError])
def test_a_failure_midway_leaves_nothing_and_comes_out_as_it_is(tmp_path, failure):
    with pytest.raises(failure), atomic.new_folder(tmp_path / "out") as folder:
        (folder / "half").write_bytes(b"half")
        (folder / "inner").mkdir()
        (folder / "inner" / "deep").write_bytes(b"half")
        raise failure
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_midway_leaves_nothing(tmp_path):
    with (
        pytest.raises(StorageError, match=r"cannot write .*out: No space left"),
        atomic.new_folder(tmp_path / "out") as folder,
    ):
        (folder / "half").write_bytes(b"half")
        no_space()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("step", ["mkdir", "rename"])
def test_a_full_disk_at_either_end_leaves_nothing(tmp_path, monkeypatch, step):
    with monkeypatch.context() as broken:
        broken.setattr(atomic.Path, step, no_space)
        with pytest.raises(StorageError, match="No space left"):
            with atomic.new_folder(tmp_path / "out") as folder:
                os.close(os.open(folder / "file", os.O_CREAT))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_somebody_else_filled_meanwhile_stays_theirs(tmp_path):
    target = tmp_path / "out"
    with pytest.raises(StorageError), atomic.new_folder(target) as folder:
        (folder / "ours").write_bytes(b"ours")
        target.mkdir()
        (target / "theirs").write_bytes(b"theirs")
    assert [one.name for one in tmp_path.rglob("*")] == ["out", "theirs"]
