"""`veilrun audit` as a process, on the real stories260K."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from veilrun import bundled, cli, config, keys
from veilrun.attacks.card_json import decode_card
from veilrun.attacks.levels import Level
from veilrun.equivariant.client import kits_folder
from veilrun.equivariant.compile import encrypt

USAGE, REFUSED = 2, 3
PASSPHRASE = "correct horse battery"
FAST = ("sort-and-hash", "svd-fingerprint", "token-frequency-same")
TEXT = "\n\n".join(
    f"Once upon a time there was a {what}. The {what} saw Lily, and Lily gave it a {gift}."
    for what in ("cat", "dog", "bird", "bear", "boy", "girl", "fish", "cow", "frog", "fox")
    for gift in ("ball", "hat", "flower", "cake", "book", "leaf", "stone", "kiss")
)


def veilrun(*arguments: object) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "veilrun.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, config.PASSPHRASE_VARIABLE: PASSPHRASE, "COLUMNS": "200"},
        timeout=600,
    )
    assert "Traceback" not in done.stderr and PASSPHRASE not in done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def place(stories: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two keys, a text and stories260K encrypted under the first key."""
    folder = tmp_path_factory.mktemp("audit")
    for name in ("my.key", "other.key"):
        keys.save_key(keys.MasterKey.generate(), folder / name, PASSPHRASE, scrypt_log2_n=10)
    key_file = folder / "my.key"
    encrypt(
        stories, folder / "out", keys.load_key(key_file, PASSPHRASE), kits=kits_folder(key_file)
    )
    (folder / "text.txt").write_text(TEXT)
    return folder


@pytest.mark.slow
def test_a_card_of_real_weights_and_again(stories: Path, place: Path):
    only = [word for name in FAST for word in ("--only", name)]
    options = ["--base", stories, "--key", place / "my.key", "--text", place / "text.txt", *only]
    done = veilrun("audit", place / "out", *options, "--json")
    assert done.returncode == 0, done.stderr
    files = place / "out.audit"
    card = decode_card((files / "card.json").read_bytes())
    assert json.loads(done.stdout) == json.loads((files / "card.json").read_text())
    assert {one.attack for one in card.outcomes} == set(FAST)
    assert all(one.failed is None for one in card.outcomes), card.outcomes
    assert card.model == "stories260K" and card.mode == "ee, residual key structured"
    assert Level.TWO_HOSTS in card.levels and Level.FINE_TUNE not in card.levels
    assert card.basis.n_texts == 40 and card.basis.n_tokens > 1000
    best = card.strongest(Level.BASE)
    assert best is not None and best.attack == "svd-fingerprint"
    assert best.rate is not None and best.rate.share > 0.95
    assert PASSPHRASE not in (files / "card.html").read_text()

    kept = sorted((files / "results").iterdir())
    assert [path.name for path in kept] == [
        "sort-and-hash@host+base.json",
        "svd-fingerprint@host+base.json",
        "token-frequency-same@wire.json",
    ]
    written = {path: path.stat().st_mtime_ns for path in kept}
    kept[0].unlink()
    again = veilrun("audit", place / "out", *options)
    assert again.returncode == 0, again.stderr
    assert "No attacker with the public base is stopped." in again.stdout
    assert f"card: {files / 'card.html'}\n" in again.stdout
    assert kept[0].exists()
    assert all(path.stat().st_mtime_ns == written[path] for path in kept[1:])
    # What was kept is in the new card as it was, down to the seconds; the rest was done again.
    new = decode_card((files / "card.json").read_bytes())
    same = [(a == b, b.attack) for a, b in zip(card.outcomes, new.outcomes, strict=True)]
    assert sorted(same) == [
        (False, "sort-and-hash"),
        (True, "svd-fingerprint"),
        (True, "token-frequency-same"),
    ]


def test_errors_say_whose_fault_it_is(stories: Path, place: Path, monkeypatch, capsys):
    monkeypatch.setenv(config.PASSPHRASE_VARIABLE, PASSPHRASE)

    def refused(out: Path, *arguments: object) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["veilrun", "audit", str(out), *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0), " ".join(capsys.readouterr().err.split())

    out, key = place / "out", place / "my.key"
    for code, words, arguments in (
        (REFUSED, "was not made with the key", (out, stories, place / "other.key")),
        (USAGE, "is not the base of this model", (out, bundled.prompter(), key)),
        (USAGE, "not an encrypted checkpoint", (stories, stories, key)),
        (USAGE, "there are: token-frequency", (out, stories, key, "--only", "sorting")),
        (USAGE, "cannot be read as UTF-8", (out, stories, key, "--text", place / "none")),
    ):
        folder, base, key_file, *rest = arguments
        found, told = refused(folder, "--base", base, "--key", key_file, *rest)
        assert (found, words in told) == (code, True), told
