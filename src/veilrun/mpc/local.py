"""All three parties on this machine: to try, to test and to measure.

    with local(Path("sst2-quantised")) as client:
        print(client.classify("a fine film").label)

Dealer and assistant are processes of their own, started as their operators would start them, in
a temporary folder that is removed in the end. Between the parties is TLS, as over a network.

Not covered: privacy. One machine holds all shares, so whoever has it has everything.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

from veilrun import config
from veilrun.errors import TransportError
from veilrun.mpc import network_file
from veilrun.mpc.model import files
from veilrun.mpc.network_file import ROLES
from veilrun.mpc.roles.client import Client
from veilrun.transport import tls

START_TIMEOUT_S: Final = 300.0
"""Loading a large model and writing its shares, on a busy machine."""
_END_TIMEOUT_S: Final = 10.0


@final
@dataclass(frozen=True, slots=True)
class Place:
    """Where the three parties of this machine live: a network file, and a state for each."""

    folder: Path

    @property
    def network(self) -> Path:
        return self.folder / "mpc.toml"

    def state(self, role: str) -> Path:
        """A party's state folder."""
        return self.folder / role

    def lay_out(self, ports: tuple[int, int] = (0, 0)) -> None:
        """Make identities and the network file. ports: P0's and P2's; 0 takes a free one."""
        addresses = {"P0": f"127.0.0.1:{ports[0]}", "P1": None, "P2": f"127.0.0.1:{ports[1]}"}
        members = {}
        for role in ROLES:
            identity = tls.ensure_identity(self.state(role))
            members[role] = (addresses[role], str(identity.certificate_path))
        network_file.write(self.network, members)


@contextlib.contextmanager
def local(model: Path, *, n_threads: int = 1, folder: Path | None = None) -> Iterator[Client]:
    """Start dealer and assistant for a quantised model; yields a client of theirs.

    folder: for what the parties keep, made where it is missing; default: a temporary one.

    Raises:
        TransportError: one of them did not start; the message says why.
        UsageError, StorageError: the folder cannot be used.
    """
    with contextlib.ExitStack() as stack:
        if folder is None:
            temporary = tempfile.TemporaryDirectory(prefix="veilrun-mpc-")
            folder = Path(stack.enter_context(temporary))
        place = Place(folder)
        stack.enter_context(servers(place, model, n_threads=n_threads))
        yield stack.enter_context(Client(place.network, place.state("P1"), n_threads=n_threads))


@contextlib.contextmanager
def servers(place: Place, model: Path, *, n_threads: int = 1) -> Iterator[None]:
    """Dealer and assistant, running; `place.network` says where."""
    files.digest(model)  # a folder that is none is told best here
    place.lay_out()
    threads = ["--threads", str(n_threads)]
    with child(["deal", str(model), *_at(place, "P0"), *threads]) as dealer:
        place.lay_out((dealer["port"], 0))
        with child(["party", *_at(place, "P2"), *threads]) as assistant:
            place.lay_out((dealer["port"], assistant["port"]))
            yield


@contextlib.contextmanager
def child(arguments: Sequence[str]) -> Iterator[dict[str, Any]]:
    """A `veilrun mpc` server as a process; yields the JSON line that it prints when ready.

    It ends with us, however we end: its standard input is a lifeline.

    Raises:
        TransportError: it ended, or said nothing within START_TIMEOUT_S.
    """
    command = [sys.executable, "-m", "veilrun.cli", "mpc", *arguments, "--json", "--lifeline"]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(  # noqa: S603 - our own command
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=config.environment_without_secrets(),
        )
        try:
            yield _ready(process, log, arguments[0])
        finally:
            _end(process)


def _ready(process: subprocess.Popen[bytes], log: Any, name: str) -> dict[str, Any]:
    if process.stdout is None:
        raise TransportError(f"veilrun mpc {name} has no output")
    late = threading.Timer(START_TIMEOUT_S, process.kill)
    late.start()
    try:
        line = process.stdout.readline()
        ready: dict[str, Any] = json.loads(line)
    except ValueError as error:
        process.wait()
        log.seek(0)
        words = log.read()[-2000:].decode(errors="replace").strip()
        raise TransportError(f"veilrun mpc {name} did not start: {words}") from error
    finally:
        late.cancel()
    return ready


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_END_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


def _at(place: Place, role: str) -> list[str]:
    return ["--network", str(place.network), "--state", str(place.state(role))]
