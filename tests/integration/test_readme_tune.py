"""Commands about the tuner in README and docs, run as they stand (on less work)."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from integration.test_tune_cli import Node, veilrun
from veilrun import bundled, config
from veilrun.equivariant.client import kits_folder, open_kit
from veilrun.equivariant.compile import encrypt
from veilrun.keys import MasterKey, save_key

ROOT = Path(__file__).resolve().parents[2]
SCENARIO = ROOT.parent / "shared" / "data" / "aslib" / "CPMP-2015"
PASSPHRASE = "correct horse"
LESS = {
    "collect": ("--model", "llama-2x128", "--tasks", "1", "--requests", "1", "1"),
    "evaluate": ("--only", "forest"),
}


def commands() -> list[str]:
    texts = [(ROOT / name).read_text() for name in ("README.md", "docs/tuning.md")]
    blocks = [one for text in texts for one in re.findall(r"```shell\n(.*?)```", text, re.DOTALL)]
    return sorted({line for block in blocks for line in block.splitlines()})


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the words in capitals stand for. The model drafts for itself: its guesses are right."""
    work = tmp_path_factory.mktemp("places")
    key, key_file = MasterKey.generate(), work / "key"
    save_key(key, key_file, PASSPHRASE)
    kits, model = kits_folder(key_file), str(bundled.prompter())
    made = encrypt(model, work / "out", key, kits=kits)
    kit = open_kit(made.client, key, made.fingerprint)
    encrypt(model, work / "out-draft", key, kits=kits, draft_of=kit)
    return {
        "KEY": str(key_file),
        "OUT": str(work / "out"),
        "DRAFT": model,
        "OUT-DRAFT": str(work / "out-draft"),
        "RUNS": str(bundled.runs()),
        "SCENARIO": str(SCENARIO),
        "docs/tuning": str(work / "plots"),
    }


@pytest.mark.parametrize("command", commands())
def test_a_command_of_the_docs_runs(
    command: str, places: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv(config.PASSPHRASE_VARIABLE, PASSPHRASE)
    if "SCENARIO" in command and not SCENARIO.exists():
        pytest.skip("../shared/data/aslib is absent")
    program, *words = shlex.split(command)
    assert program == "veilrun"
    words = [places.get(word, word) for word in words]
    if words[0] == "node":
        with Node(*words[1:], "--identity", tmp_path / "identity") as announced:
            assert announced["url"]
        return
    if words[:2] == ["tune", "collect"]:
        words[2] = str(tmp_path / "runs")
    if words[0] == "encrypt":
        words[2] = str(tmp_path / "out-draft")
    assert veilrun(*words, *LESS.get(words[1], ())).stdout


def test_docs_name_commands():
    assert len(commands()) >= 6
