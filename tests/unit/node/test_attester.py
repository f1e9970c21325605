"""`veilrun node --attester`: what goes together, what it is about, and what is printed."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest
from cryptography import x509

from unit.node.subjects import write_manifest
from veilrun.attest.certificates import key_sha256
from veilrun.attest.claims import Kind
from veilrun.attest.live import tpm
from veilrun.attest.live.machine import AttesterError, Made
from veilrun.cli.attester import AttesterName, GpuAttesterName
from veilrun.cli.node import node as command
from veilrun.cli.node_engines import EngineOptions
from veilrun.errors import RefusedError, UsageError
from veilrun.node import service
from veilrun.transport import tls

FINGERPRINT = "cd" * 32


class Tpm:
    works = True

    def __init__(self, address: str) -> None:
        self.address = address

    def key_fingerprint(self) -> str:
        return FINGERPRINT

    def evidence(self, report_data: bytes) -> Made:
        if not self.works:
            raise AttesterError("no quote today")
        return Made(Kind.TPM, report_data)


@pytest.fixture
def started(tmp_path, monkeypatch) -> list[Any]:
    """Listeners of nodes that would have run."""
    listeners: list[Any] = []
    write_manifest(tmp_path, 10)

    async def run_node(*arguments: Any) -> None:
        listeners.append(arguments[4])
        arguments[-1](4321)

    module = sys.modules["veilrun.cli.node"]
    monkeypatch.setattr(service, "run_node", run_node)
    monkeypatch.setattr(EngineOptions, "engine", lambda *_: "engine")
    monkeypatch.setattr(module, "log_to_stderr", lambda: None)
    monkeypatch.setattr(tpm, "TpmAttester", Tpm)
    return listeners


def test_what_the_evidence_is_about(started, tmp_path, tmp_path_factory, capsys):
    home = tmp_path_factory.mktemp("identity")
    where = {"identity": home, "attester": AttesterName.tpm, "tpm": "swtpm:port=1"}
    command(tmp_path, as_json=True, **where)
    assert json.loads(capsys.readouterr().out)["attestation_key"] == FINGERPRINT
    (listener,) = started
    attested = listener.attested
    assert attested.attester.address == "swtpm:port=1"
    assert attested.gpu_attester is None
    pem = tls.ensure_identity(home).certificate_pem
    key = x509.load_pem_x509_certificate(pem).public_key()
    assert attested.tls_key_sha256 == key_sha256(key)
    manifest = json.loads((tmp_path / "veilrun.json").read_text())
    assert attested.weights_root.hex() == manifest["weights_root"]
    assert listener.attestation() is not None
    command(tmp_path, **where)
    assert f"attestation key {FINGERPRINT}: a policy names it under [tpm]" in (
        capsys.readouterr().out
    )


def test_a_node_without_an_attester_has_no_path(started, tmp_path, tmp_path_factory):
    command(tmp_path, identity=tmp_path_factory.mktemp("identity"))
    assert started[0].attested is None and started[0].attestation() is None


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"tpm": "device:/dev/tpm0"}, UsageError),
        ({"gpu_attester": GpuAttesterName.nvidia}, UsageError),
        ({"attester": AttesterName.tdx, "tpm": "device:/dev/tpm0"}, UsageError),
        ({"attester": AttesterName.tpm, "insecure_plain_http": True}, RefusedError),
        ({"attester": AttesterName.tdx}, UsageError),  # not such a machine
        ({"attester": AttesterName.snp}, UsageError),
    ],
    ids=str,
)
def test_what_does_not_go_together(options, error, started, tmp_path, tmp_path_factory):
    with pytest.raises(error):
        command(tmp_path, identity=tmp_path_factory.mktemp("identity"), **options)
    assert started == []


def test_a_device_that_fails_stops_the_node_now(started, tmp_path, tmp_path_factory, monkeypatch):
    monkeypatch.setattr(Tpm, "works", False)
    with pytest.raises(UsageError, match="no quote today"):
        home = tmp_path_factory.mktemp("identity")
        command(tmp_path, identity=home, attester=AttesterName.tpm)
    assert started == []
