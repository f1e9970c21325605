"""Agreement on the real stories260K: the numbers that the README states."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from veilrun.equivariant.agreement import measure, windows
from veilrun.equivariant.client import open_kit
from veilrun.equivariant.compile import encrypt
from veilrun.keys import MasterKey

README = (Path(__file__).resolve().parents[2] / "README.md").read_text()
TEXT = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park "
    "with her dog, Max. One day, they saw a big tree with red apples. Lily wanted an apple, but "
    "the tree was too tall. Max barked and jumped. A kind man came by and gave them a ladder. "
    "Lily was so happy that she gave the man the biggest apple of all. They became good friends "
    "and went to the park together every day. "
) * 4


@pytest.mark.parametrize(("dtype", "at_least"), [("float32", 1.0), ("bfloat16", 0.95)])
def test_stories_agree(stories: Path, tmp_path: Path, dtype, at_least: float):
    key = MasterKey(bytes(range(32)))
    made = encrypt(stories, tmp_path / "out", key, kits=tmp_path / "kits")
    codec = open_kit(made.client, key, made.fingerprint).codec
    found = measure(stories, made.folder, codec, windows(stories, TEXT, 512, 256), dtype)
    assert found.n_positions == 512
    assert found.top_token_share >= at_least
    if dtype == "bfloat16":
        stated = re.search(r"bf16: positions with the same top token \| ([\d.]+) %", README)
        assert stated is not None
        assert abs(100 * found.top_token_share - float(stated[1])) < 1.5, found
