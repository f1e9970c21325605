"""`veilrun node` up to the moment it serves: what it refuses, and what it prints."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from unit.node.subjects import FINGERPRINT, write_manifest
from veilrun.cli.node import node as command
from veilrun.cli.node_engines import EngineOptions
from veilrun.errors import RefusedError, UsageError
from veilrun.node import service
from veilrun.transport import tls
from veilrun.types import EE


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "tiny-encrypted"
    folder.mkdir()
    write_manifest(folder, 10)
    return folder


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the command would have run, instead of running it."""
    calls: list[Any] = []

    async def run_node(*arguments: Any) -> None:
        calls.append(arguments)
        on_ready: Callable[[int], None] = arguments[-1]
        on_ready(4321)

    monkeypatch.setattr(service, "run_node", run_node)
    module = sys.modules["veilrun.cli.node"]  # the package's name `node` is the function
    monkeypatch.setattr(EngineOptions, "engine", lambda *_: "engine")
    monkeypatch.setattr(module, "log_to_stderr", lambda: None)
    return calls


def test_json_line_names_what_a_proxy_needs(
    out: Path, tmp_path: Path, served: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    command(out, identity=tmp_path / "identity", as_json=True)
    pin = tls.ensure_identity(tmp_path / "identity").pin
    assert json.loads(capsys.readouterr().out) == {
        "url": "https://127.0.0.1:4321",
        "pin": pin,
        "model": "tiny-encrypted",
        "fingerprint": FINGERPRINT,
    }
    ((engine, folder, manifest, model, listener, limits, _),) = served
    assert folder == out
    assert (engine, manifest.vocab_size, model) == ("engine", 10, "tiny-encrypted")
    assert (listener.port, listener.api_key, limits.max_running) == (8443, None, 16)
    assert listener.tls is not None


def test_text_holds_the_guarantee_unshortened_and_a_command_on_one_line(
    out: Path, tmp_path: Path, served: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    command(out, identity=tmp_path / "identity")
    text = capsys.readouterr().out
    pin = tls.ensure_identity(tmp_path / "identity").pin
    assert f"veilrun proxy --key KEY --node https://127.0.0.1:4321 --pin {pin}\n" in text
    words = set(text.split())
    for said in (EE.node_gets, EE.stands_against, EE.does_not_stop):
        assert words >= set(said.split())


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org", ""])
def test_plain_http_beyond_loopback_is_refused(out: Path, host: str, served: list[Any]) -> None:
    with pytest.raises(RefusedError, match="plain HTTP"):
        command(out, host=host, insecure_plain_http=True)
    assert not served


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.9.9.9"])
def test_plain_http_on_loopback_has_no_pin(
    out: Path, host: str, served: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    command(out, host=host, insecure_plain_http=True, as_json=True)
    line = json.loads(capsys.readouterr().out)
    assert line["pin"] is None
    assert line["url"].startswith("http://")
    assert ("[::1]" in line["url"]) is (host == "::1")


def test_a_private_key_inside_the_served_folder_is_refused(out: Path, served: list[Any]) -> None:
    for inside in (out, out / "identity", out / "a" / ".." / "b"):
        with pytest.raises(RefusedError, match="TLS key"):
            command(out, identity=inside)
    assert sorted(one.name for one in out.iterdir()) == ["veilrun.json"]


def test_the_default_identity_is_the_users_and_not_in_the_served_folder(
    out: Path, tmp_path: Path, served: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    command(out)
    assert list((tmp_path / "home").rglob(tls.PRIVATE_KEY_FILE))


def test_the_api_key_is_read_from_a_file(out: Path, tmp_path: Path, served: list[Any]) -> None:
    (tmp_path / "key").write_text("  secret \n")
    (tmp_path / "key").chmod(0o600)
    command(out, identity=tmp_path / "identity", api_key_file=tmp_path / "key")
    assert served[0][4].api_key == "secret"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org", ""])
def test_an_address_for_strangers_needs_an_api_key(
    out: Path,
    tmp_path: Path,
    host: str,
    served: list[Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    identity = tmp_path / "identity"
    with pytest.raises(RefusedError, match="--api-key-file"):
        command(out, host=host, identity=identity)
    assert not served
    assert not identity.exists()
    (tmp_path / "key").write_text("secret")
    (tmp_path / "key").chmod(0o600)
    command(out, host=host, identity=identity, api_key_file=tmp_path / "key", as_json=True)
    assert capsys.readouterr().err == ""
    command(out, host=host, identity=identity, insecure_no_api_key=True, as_json=True)
    output = capsys.readouterr()
    assert "no API key" in output.err
    assert json.loads(output.out)["pin"]
    assert [one[4].api_key for one in served] == ["secret", None]


def test_loopback_needs_no_api_key_and_no_warning(
    out: Path, tmp_path: Path, served: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    command(out, identity=tmp_path / "identity", insecure_no_api_key=True)
    assert capsys.readouterr().err == ""
    assert served[0][4].api_key is None


@pytest.mark.parametrize("content", [None, b"", b"\n", b"\xff"])
def test_an_api_key_that_cannot_be_used_is_a_usage_error(
    out: Path, tmp_path: Path, served: list[Any], content: bytes | None
) -> None:
    if content is not None:
        (tmp_path / "key").write_bytes(content)
        (tmp_path / "key").chmod(0o600)
    with pytest.raises(UsageError):
        command(out, identity=tmp_path / "identity", api_key_file=tmp_path / "key")
    assert not served


def test_a_folder_with_a_tokenizer_is_refused_before_anything_else(
    out: Path, tmp_path: Path, served: list[Any]
) -> None:
    (out / "tokenizer.json").write_text("{}")
    with pytest.raises(RefusedError, match=r"tokenizer\.json"):
        command(out, identity=tmp_path / "identity")
    assert not (tmp_path / "identity").exists()
    assert not served
