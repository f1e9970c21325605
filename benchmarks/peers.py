"""Peer frameworks of secure multi-party computation, each run by its own script.

A peer's script prints one JSON line and never meets this project's packages: it runs in a virtual
environment of its own, because the pins of the peers contradict each other and ours. What is not
there, script or environment, is a reason to skip the peer; a peer that runs and fails is an error.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass, fields
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
SCRIPTS = REPOSITORY.parent / "shared" / "peers"
PYTHON = "python3.11"  # the newest that all peers have wheels for


@dataclass(frozen=True, slots=True)
class Peer:
    """One framework: its script, and the pip installs that make its environment, in order."""

    script: str
    distribution: str
    version: str
    installs: tuple[tuple[str, ...], ...]


PEERS = {
    "crypten": Peer(
        "crypten_bert.py",
        "crypten",
        "0.4.1",
        (
            (
                "torch==2.13.0",
                "numpy==2.4.6",
                "onnx==1.23.2",
                "omegaconf==2.4.0",
                "pyyaml==6.0.3",
            ),
            ("--no-deps", "crypten==0.4.1"),  # it asks for a withdrawn package
        ),
    ),
    "spu": Peer("spu_bert.py", "spu", "0.9.5", (("spu==0.9.5",),)),
}


@dataclass(frozen=True, slots=True)
class PeerResult:
    """What a peer says of one inference, all its parties together."""

    peer: str
    version: str
    layers: int
    tokens: int
    wall_s: float
    cpu_s: float
    bytes_total: int
    rounds: int
    max_abs_err: float


def script(name: str) -> tuple[Path | None, str]:
    """The peer's script, or None and why not."""
    path = SCRIPTS / PEERS[name].script
    if not path.is_file():
        return None, f"{path.name} is not in ../shared/peers"
    return path, ""


def environment(name: str, cache: Path, *, install: bool = False) -> tuple[Path | None, str]:
    """The Python of the peer's environment in `cache`, or None and why not.

    install: make the environment if it is missing or half made; needs a package index.
    """
    peer, folder = PEERS[name], cache.absolute() / f"env-{name}"
    if _is_complete(peer, folder):
        return folder / "bin" / "python", ""
    if not install:
        return None, f"{name} {peer.version} is not installed"
    base = shutil.which(PYTHON)
    if base is None:
        return None, f"{name} needs {PYTHON}, which is not installed"
    python = folder / "bin" / "python"
    commands = [[base, "-m", "venv", str(folder)]]
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install"]
    commands += [[*pip, *wanted] for wanted in peer.installs]
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            return None, f"{name} could not be installed: {_last_line(done.stderr)}"
    return python, ""


def run_peer(
    name: str,
    cache: Path,
    *,
    layers: int,
    tokens: int,
    options: tuple[str, ...] = (),
    install: bool = False,
    timeout_s: float = 3600,
) -> tuple[PeerResult | None, str]:
    """One inference by the peer, or None and why it was skipped.

    options: further arguments of the script, such as `--protocol SEMI2K`.
    timeout_s: left to the script, which ends its parties too; killing it would orphan them.
    """
    path, reason = script(name)
    if path is None:
        return None, reason
    python, reason = environment(name, cache, install=install)
    if python is None:
        return None, reason
    command = [str(python), str(path), "--layers", str(layers), "--tokens", str(tokens)]
    command += ["--timeout", str(timeout_s), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{path.name} ended with {done.returncode}: {_last_line(done.stderr)}")
    result = parse(_last_line(done.stdout))
    if (result.layers, result.tokens) != (layers, tokens):
        raise RuntimeError(f"{path.name} ran {result.layers} layers, {result.tokens} tokens")
    return result, ""


def parse(line: str) -> PeerResult:
    """The result in a script's JSON line; every key must be there, and no other."""
    facts = json.loads(line)
    if not isinstance(facts, dict):
        raise ValueError("a peer's result is not a JSON object")
    different = facts.keys() ^ {field.name for field in fields(PeerResult)}
    if different:
        raise ValueError(f"missing or unknown keys in a peer's result: {sorted(different)}")
    return PeerResult(**facts)


def _is_complete(peer: Peer, folder: Path) -> bool:
    """The framework is what pip installs last, so with its metadata there, all is there."""
    metadata = f"{peer.distribution}-{peer.version}.dist-info"
    return any(folder.glob(f"lib/python*/site-packages/{metadata}/RECORD"))


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else "no output"
