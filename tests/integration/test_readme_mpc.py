"""The README's part about three parties: its commands parse, and run as they stand on a small model
with another folder's name for MODEL, and this machine's addresses for the parties'.
"""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import mpc_parties
import pytest
import typer.main

from veilrun import cli
from veilrun.mpc.local import child
from veilrun.mpc.model.quantised import SECRET_EMBEDDING

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
PARTIES = ("owner", "client", "assistant")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands() -> dict[str, list[list[str]]]:
    """What follows `veilrun mpc`, by its first word."""
    found: dict[str, list[list[str]]] = {}
    for line in "".join(blocks("bash")).splitlines():
        program, mode, *words = shlex.split(line, comments=True)
        assert (program, mode) == ("veilrun", "mpc"), line
        found.setdefault(words[0], []).append(words)
    return found


def run(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def veilrun(words: list[str]) -> str:
    return run("-m", "veilrun.cli", "mpc", *words)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each party; the owner's has the model."""
    folder = tmp_path_factory.mktemp("readme")
    for party in PARTIES:
        (folder / party).mkdir()
    mpc_parties.save(mpc_parties.model(SECRET_EMBEDDING), folder / "owner" / "OUT")
    return folder


def test_every_command_is_there_and_parses():
    mpc = typer.main.get_command(cli.app).commands["mpc"]  # type: ignore[attr-defined]
    assert set(commands()) == set(mpc.commands)
    for word, uses in commands().items():
        for words in uses:
            mpc.commands[word].make_context(word, words[1:])


def test_commands_in_tables_parse():
    mpc = typer.main.get_command(cli.app).commands["mpc"]  # type: ignore[attr-defined]
    named = re.findall(r"`veilrun mpc (\w+)([^`]*)`", README)
    assert named
    for word, rest in named:
        arguments = shlex.split(rest.replace(" N", " 8"))
        mpc.commands[word].make_context(word, arguments)


def test_on_one_machine_it_runs_as_written(place: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(place / "owner")
    here = commands()["classify"][0]
    assert here[1] == "OUT"
    assert "MB online in" in veilrun(here)
    (program,) = blocks("py")
    label = run("-c", program).split()[0]
    assert label in mpc_parties.model(SECRET_EMBEDDING).public.architecture.labels
    assert "lan" in veilrun(commands()["bench"][0])


def test_on_three_machines_it_runs_as_written(place: Path, monkeypatch: pytest.MonkeyPatch):
    (network,) = blocks("toml")
    for number, party in enumerate(PARTIES):
        monkeypatch.chdir(place / party)
        veilrun(commands()["identity"][0])
        certificate = Path("state/node-certificate.pem").read_bytes()
        for other in PARTIES:
            (place / other / f"p{number}.pem").write_bytes(certificate)
    network = re.sub(r"[a-z]+\.example:\d+", lambda _: f"127.0.0.1:{free_port()}", network)
    for party in PARTIES:
        (place / party / "mpc.toml").write_text(network)
    (deal,), (party_,), (_, ask) = (commands()[word] for word in ("deal", "party", "classify"))
    os.chdir(place / "owner")
    with child(deal):
        os.chdir(place / "assistant")
        with child(party_):
            os.chdir(place / "client")
            assert "MB online in" in veilrun(ask)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port
