"""The command line: exit codes that scripts can trust, errors without tracebacks, JSON."""

from __future__ import annotations

import json
import shlex
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from veilrun import bundled, cli, config, keys
from veilrun.wire.manifest import MANIFEST_FILE

GOOD, FAILED, USAGE, REFUSED, NETWORK = 0, 1, 2, 3, 5
PASSPHRASE = "correct horse battery"


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str


Run = Callable[..., Done]


@pytest.fixture(autouse=True)
def cheap_keys(monkeypatch):
    monkeypatch.setattr(keys, "SCRYPT_LOG2_N", 10)
    monkeypatch.setattr(keys.save_key, "__kwdefaults__", {"scrypt_log2_n": 10})
    monkeypatch.setenv(config.PASSPHRASE_VARIABLE, PASSPHRASE)


@pytest.fixture
def run(monkeypatch, capsys) -> Run:
    def call(*arguments: object) -> Done:
        monkeypatch.setattr("sys.argv", ["veilrun", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        assert "Traceback" not in captured.out + captured.err
        assert PASSPHRASE not in captured.out + captured.err
        return Done(int(ended.value.code or 0), captured.out, captured.err)

    return call


@pytest.fixture
def key_file(run: Run, tmp_path: Path) -> Path:
    path = tmp_path / "my.key"
    assert run("keygen", path).code == GOOD
    return path


@pytest.fixture
def encrypted(run: Run, key_file: Path, tmp_path: Path) -> Path:
    done = run("encrypt", bundled.prompter(), tmp_path / "out", "--key", key_file, "--json")
    assert done.code == GOOD, done.err
    facts = json.loads(done.out)
    assert facts["family"] == "llama" and len(facts["fingerprint"]) == 32
    return tmp_path / "out"


def test_help_is_a_tour(run: Run):
    done = run("--help")
    assert done.code == GOOD
    for word in ("demo", "keygen", "encrypt", "check", "node", "proxy", "chat"):
        assert f"veilrun {word}" in done.out or f" {word} " in done.out
    for word in ("encrypt", "node", "proxy", "demo", "check", "chat", "keygen", "mpc"):
        assert run(word, "--help").code == GOOD
    shown = " ".join(done.out.split())
    for line in ("mpc quantise MODEL out --calibrate texts.txt", 'mpc classify out "a fine film"'):
        assert f"veilrun {line}" in shown


def test_keygen_makes_a_private_file_and_never_overwrites(run: Run, key_file: Path):
    assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
    done = run("keygen", key_file)
    assert done.code == USAGE and "never overwritten" in done.err


def test_keygen_does_not_ask_for_a_passphrase_in_vain(run: Run, key_file: Path, monkeypatch):
    monkeypatch.delenv(config.PASSPHRASE_VARIABLE)
    done = run("keygen", key_file)  # nobody can be asked here, which would be another error
    assert done.code == USAGE and "never overwritten" in done.err


def test_paths_are_printed_so_that_they_can_be_copied(run: Run, tmp_path: Path):
    folder = tmp_path / ("long " * 20) / "[bold]"
    folder.mkdir(parents=True)
    made = run("keygen", folder / "my.key")
    assert str(folder / "my.key") in made.out
    done = run("encrypt", bundled.prompter(), folder / "out", "--key", folder / "my.key")
    assert done.code == GOOD, done.err
    assert f"into {folder / 'out'}\n" in done.out
    (following,) = [line for line in done.out.splitlines() if line.startswith("next: ")]
    assert shlex.split(following)[-3:] == [str(folder / "out"), "--key", str(folder / "my.key")]


def test_secrets_in_files_that_others_can_read_are_refused(run: Run, key_file: Path, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text(PASSPHRASE)
    kind_of = {"--passphrase-file": REFUSED, "--api-key-file": USAGE, "--node-api-key-file": USAGE}
    nobody = ["--node", "https://127.0.0.1:9", "--pin", "sha256:" + "0" * 64]
    for mode in (0o640, 0o604, 0o620):
        secret.chmod(mode)
        for option, code in kind_of.items():
            if option == "--passphrase-file":
                done = run("keygen", tmp_path / "new.key", option, secret)
            else:
                done = run("proxy", "--key", key_file, *nobody, option, secret)
            assert done.code == code and "run: chmod 600" in " ".join(done.err.split())
        assert run("chat", "--api-key-file", secret, "Hello").code == USAGE
    secret.chmod(0o600)
    assert run("keygen", tmp_path / "new.key", "--passphrase-file", secret).code == GOOD


def test_check_measures_and_passes(run: Run, key_file: Path, encrypted: Path):
    done = run("check", bundled.prompter(), encrypted, "--key", key_file, "--json")
    assert done.code == GOOD, done.err
    results = {one["dtype"]: one for one in json.loads(done.out)}
    assert set(results) == {"float32", "bfloat16"}
    assert results["float32"]["top_token_share"] > 0.98
    table = run("check", bundled.prompter(), encrypted, "--key", key_file, "--dtype", "float32")
    assert "same top token" in table.out


def test_check_fails_on_another_model(run: Run, key_file: Path, encrypted: Path):
    weights = encrypted / "model.safetensors"
    tensors = load_file(weights)
    name = "model.layers.0.mlp.down_proj.weight"
    tensors[name] = tensors[name] + 0.3 * torch.randn_like(tensors[name])
    save_file(tensors, weights)
    done = run("check", bundled.prompter(), encrypted, "--key", key_file, "--dtype", "float32")
    assert done.code == FAILED


def test_wrong_passphrase_and_wrong_key(run: Run, key_file: Path, encrypted: Path, monkeypatch):
    other = key_file.with_name("other.key")
    assert run("keygen", other).code == GOOD
    done = run("check", bundled.prompter(), encrypted, "--key", other)
    assert done.code == REFUSED and "was not made with the key" in done.err
    monkeypatch.setenv(config.PASSPHRASE_VARIABLE, "wrong")
    done = run("check", bundled.prompter(), encrypted, "--key", key_file)
    assert done.code == REFUSED and "wrong passphrase" in done.err


def test_bad_models_are_refused(run: Run, key_file: Path, encrypted: Path, tmp_path: Path):
    done = run("encrypt", bundled.prompter(), encrypted, "--key", key_file)
    assert done.code == USAGE and "exists already" in done.err
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "config.json").write_text('{"model_type": "llama"}')
    (bad / "pytorch_model.bin").write_bytes(b"")
    done = run("encrypt", bad, tmp_path / "new", "--key", key_file)
    assert done.code == REFUSED and "pickles" in done.err
    done = run("encrypt", tmp_path / "nowhere", tmp_path / "new", "--key", key_file)
    assert done.code == USAGE and "not a folder" in done.err
    assert not (tmp_path / "new").exists()


def test_a_damaged_manifest_is_named(run: Run, key_file: Path, encrypted: Path):
    (encrypted / MANIFEST_FILE).write_text("{}")
    done = run("check", bundled.prompter(), encrypted, "--key", key_file)
    assert done.code == USAGE and MANIFEST_FILE in done.err


def test_a_node_refuses_a_tokenizer_and_unsafe_addresses(run: Run, encrypted: Path):
    plain = run("node", encrypted, "--host", "0.0.0.0", "--insecure-plain-http-for-loopback-only")
    assert plain.code == REFUSED
    strangers = run("node", encrypted, "--host", "0.0.0.0")
    assert strangers.code == REFUSED and "--api-key-file" in strangers.err
    (encrypted / "tokenizer.json").write_text("{}")
    done = run("node", encrypted)
    assert done.code == REFUSED and "tokenizer.json" in done.err


def test_a_proxy_without_a_node_says_so(run: Run, key_file: Path, encrypted: Path):
    pin = "sha256:" + "0" * 64
    nobody = ["--node", "https://127.0.0.1:9", "--pin", pin]
    assert run("proxy", "--key", key_file, *nobody).code == NETWORK
    assert run("proxy", "--key", key_file, *nobody[:2], "--pin", "sha256:12").code == USAGE
    assert run("proxy", "--key", key_file, *nobody, "--host", "0.0.0.0").code == REFUSED


def test_wrong_usage(run: Run):
    assert run("encrypt").code == USAGE
    assert run("nonsense").code == USAGE
