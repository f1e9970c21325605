"""Runs one command for as long as whoever started this lives. A script of its own, stdlib only.

    python -I -S lifeline.py GRACE_S FOLDER COMMAND [ARGUMENT...]

Standard input is the lifeline: it ends when the starter closes it or dies, however it dies.
Then the command is asked to end, and after GRACE_S seconds it is made to. When the command has
ended, for whatever reason, the rest of its session is killed and FOLDER is removed.

Exit code: the command's; 128 plus the signal's number if a signal ended it; 127 if it did not
start.

Invariant: when this has ended, neither a process of the command's session nor FOLDER is left.
Killing this script itself with SIGKILL is the one way around that.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import time

_POLL_S = 0.05
_SHORT_S = 0.01
_CLEARING_S = 3.0
_PR_SET_CHILD_SUBREAPER = 36
_STDIN = 0


def main(arguments: list[str]) -> int:
    """Run the command; return this script's exit code."""
    grace_s, folder, command = float(arguments[0]), arguments[1], arguments[2:]
    # Nobody but the lifeline ends us: its closing does all that a signal could ask for.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    _adopt_orphans()
    try:
        child = _start(command)
        if child is None:
            return 127
        _wait_for_end(child)
        _end(child, grace_s)
        code = child.wait()
        return code if code >= 0 else 128 - code
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _adopt_orphans() -> None:
    """On Linux, become the parent of our descendants' orphans, to see them end."""
    # Elsewhere the system's first process gets them, and a dead one counts until it has noticed.
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _start(command: list[str]) -> subprocess.Popen[bytes] | None:
    def heed_signals() -> None:  # ignored signals are inherited; there are no threads here
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)

    try:
        return subprocess.Popen(  # noqa: S603 - the command is the operator's own
            command, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=heed_signals
        )
    except OSError as error:
        sys.stderr.write(f"OSError: {error}\n")
        return None


def _wait_for_end(child: subprocess.Popen[bytes]) -> None:
    """Return when the child or the lifeline has ended."""
    while child.poll() is None:
        readable, _, _ = select.select([_STDIN], [], [], _POLL_S)
        if readable and not os.read(_STDIN, 4096):
            return


def _end(child: subprocess.Popen[bytes], grace_s: float) -> None:
    if child.poll() is None:
        child.terminate()
        limit_s = time.monotonic() + grace_s
        while child.poll() is None and time.monotonic() < limit_s:
            time.sleep(_POLL_S)
    # Workers outlive a leader that was killed. They are our children then, see `_adopt_orphans`.
    limit_s = time.monotonic() + _CLEARING_S
    with contextlib.suppress(ProcessLookupError, PermissionError):
        while time.monotonic() < limit_s:
            os.killpg(child.pid, signal.SIGKILL)
            if child.poll() is not None:
                with contextlib.suppress(ChildProcessError):
                    while os.waitpid(-child.pid, os.WNOHANG)[0]:
                        pass
            time.sleep(_SHORT_S)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
