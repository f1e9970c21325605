"""The lifeline: whatever happens to whom, nothing of the command is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from veilrun.node import lifeline

FAMILY = """
import pathlib, signal, subprocess, sys, time
if sys.argv[2] == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
pathlib.Path(sys.argv[1] + ".new").write_text(str(child.pid))
pathlib.Path(sys.argv[1] + ".new").rename(sys.argv[1])
if sys.argv[2] == "quits":
    sys.exit(7)
time.sleep(600)
"""


def start(tmp_path: Path, manner: str) -> tuple[subprocess.Popen[bytes], list[psutil.Process]]:
    """Run a command with one child; returns the lifeline and the two processes."""
    (tmp_path / "folder").mkdir()
    script = (sys.executable, "-I", "-S", lifeline.__file__, "1.0", str(tmp_path / "folder"))
    command = (sys.executable, "-S", "-c", FAMILY, str(tmp_path / "pid"), manner)
    line = subprocess.Popen((*script, *command), stdin=subprocess.PIPE, start_new_session=True)
    while not (tmp_path / "pid").exists():
        time.sleep(0.02)
    worker = psutil.Process(int((tmp_path / "pid").read_text()))
    return line, [worker, *psutil.Process(line.pid).children()]


def assert_nothing_is_left(family: list[psutil.Process], tmp_path: Path) -> None:
    _, alive = psutil.wait_procs(family, timeout=5)
    assert not alive
    assert not (tmp_path / "folder").exists()


@pytest.mark.parametrize(("manner", "code"), [("mild", 143), ("stubborn", 137), ("quits", 7)])
def test_letting_go_ends_the_command(tmp_path: Path, manner: str, code: int) -> None:
    line, family = start(tmp_path, manner)
    if manner != "quits":
        assert line.poll() is None
        line.stdin.close()
    assert line.wait(timeout=10) == code
    assert_nothing_is_left(family, tmp_path)
    line.stdin.close()


def test_signals_to_it_change_nothing(tmp_path: Path) -> None:
    line, family = start(tmp_path, "mild")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(line.pid, number)
    time.sleep(0.3)
    assert all(one.is_running() for one in family)
    line.stdin.close()
    line.wait(timeout=10)
    assert_nothing_is_left(family, tmp_path)


def test_a_killed_command_takes_its_children_along(tmp_path: Path) -> None:
    line, (worker, leader) = start(tmp_path, "mild")
    leader.kill()
    assert line.wait(timeout=10) == 128 + signal.SIGKILL
    assert_nothing_is_left([worker, leader], tmp_path)
    line.stdin.close()


def test_a_command_that_does_not_exist(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    script = (sys.executable, "-I", "-S", lifeline.__file__, "1.0", str(tmp_path / "folder"))
    ended = subprocess.run((*script, str(tmp_path / "no")), input=b"", capture_output=True)
    assert ended.returncode == 127
    assert b"OSError" in ended.stderr
    assert not (tmp_path / "folder").exists()
