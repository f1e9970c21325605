"""The README's commands, run as they stand; its table, held to the code."""

from __future__ import annotations

import asyncio
import re
import shlex
import subprocess
import sys
from pathlib import Path

from veilrun import bundled, config
from veilrun.demo import child
from veilrun.types import EE, MPC

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands() -> list[list[str]]:
    lines = "".join(blocks("sh")).splitlines()
    return [shlex.split(line, comments=True) for line in lines]


async def test_the_quickstart_runs_as_written(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(config.PASSPHRASE_VARIABLE, "correct horse")
    by_word = {one[1]: one[1:] for one in commands() if one[0] == "veilrun"}
    assert set(by_word) == {"keygen", "encrypt", "check", "node", "proxy"}
    for word in ("keygen", "encrypt", "check"):
        arguments = [str(bundled.prompter()) if one == "MODEL" else one for one in by_word[word]]
        done = subprocess.run(
            [sys.executable, "-m", "veilrun.cli", *arguments], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    for name, secret in {"passphrase": "correct horse", "node.key": "their door"}.items():
        Path(name).write_text(secret)
        Path(name).chmod(0o600)
    quiet = ["--port", "0", "--json"]
    command = ["127.0.0.1" if one == "0.0.0.0" else one for one in by_word["node"]]
    async with child([*command, *quiet, "--identity", "node-identity"]) as node:
        proxy = [node["pin"] if one == "PIN" else one for one in by_word["proxy"]]
        proxy[proxy.index("--node") + 1] = node["url"]
        async with child([*proxy, *quiet, "--passphrase-file", "passphrase"]) as ready:
            (program,) = blocks("python")
            program = program.replace("http://127.0.0.1:8080/v1", ready["url"])
            asked = await asyncio.create_subprocess_exec(
                sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE
            )
            answer, _ = await asked.communicate()
    assert asked.returncode == 0
    assert len(answer.decode().strip()) > 10


def test_make_commands_exist():
    makefile = (ROOT / "Makefile").read_text()
    for one in commands():
        if one[0] == "make":
            assert f"\n{one[1]}:" in makefile


def test_the_table_says_what_the_code_says():
    for mode in (EE, MPC):
        row = f"| {mode.node_gets} | {mode.stands_against} | {mode.does_not_stop} |"
        assert f"\n| `{mode.name}` " in README and row in README
