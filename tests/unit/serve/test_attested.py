"""What a proxy must be told before it asks a node for evidence, and what it makes of an answer."""

from __future__ import annotations

import hashlib
import ssl
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from veilrun.attest.policy import AllOf, Demands
from veilrun.attest.policy_file import parse_policy
from veilrun.attest.reasons import AppraisalError, Reason
from veilrun.cli.proxy import _requirement
from veilrun.errors import DecodeError, RefusedError, UsageError
from veilrun.serve.attested import Gate, Requirement, WatchedPin, verify_evidence
from veilrun.serve.node_address import insecure_plain_http_node_for_loopback_only, pinned_node
from veilrun.serve.openai_errors import reply_to

PIN = "sha256:" + "ab" * 32


def requirement(policy: str = "") -> Requirement:
    return Requirement(parse_policy(policy))


def test_plain_http_has_no_key_to_be_about():
    address = insecure_plain_http_node_for_loopback_only("http://127.0.0.1:1")
    assert Gate(address, None).is_open
    with pytest.raises(RefusedError):
        Gate(address, requirement())


def test_a_gate_without_a_requirement_is_open_and_another_is_not():
    address = pinned_node("https://127.0.0.1:1", PIN)
    assert Gate(address, None).is_open and Gate(address, None).pin is None
    assert not Gate(address, requirement()).is_open


def test_how_long_a_verdict_holds():
    assert requirement().max_age_s == 3600
    assert requirement("[freshness]\nmax_age_s = 5").max_age_s == 5


class Transport:
    """A connection to whoever has this certificate."""

    def __init__(self, certificate: bytes) -> None:
        self.certificate, self.closed = certificate, False

    def get_extra_info(self, name: str) -> Any:
        return {"ssl_object": self, "sslcontext": ssl, "peername": ("x", 1)}[name]

    def getpeercert(self, *, binary_form: bool) -> bytes:
        assert binary_form
        return self.certificate

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True


def test_connections_that_nobody_asked_for():
    pin = WatchedPin(hashlib.sha256(b"certificate").digest())
    stray: Any = Transport(b"certificate")
    with pytest.raises(aiohttp.ServerDisconnectedError):
        pin.check(stray)
    assert stray.closed and not pin.is_connected and pin.certificate is None
    pin.is_appraising = True
    with pytest.raises(aiohttp.ServerFingerprintMismatch):
        pin.check(Transport(b"another"))  # type: ignore[arg-type]
    first: Any = Transport(b"certificate")
    pin.check(first)
    pin.is_appraising = False
    assert pin.is_connected and pin.certificate == b"certificate"
    second: Any = Transport(b"certificate")
    pin.check(second)  # beside one that is known
    first.close()
    assert pin.is_connected
    second.close()
    assert not pin.is_connected
    with pytest.raises(aiohttp.ServerDisconnectedError):
        pin.check(Transport(b"certificate"))  # type: ignore[arg-type]


@pytest.mark.parametrize("evidence", [b"", b"{}", b"\0" * 100, b"[" * 10**6])
def test_nonsense_does_not_parse(evidence):
    with pytest.raises(DecodeError):
        verify_evidence(evidence, requirement(), Demands(bytes(32)))


def test_a_bundle_of_nothing_is_refused():
    empty = b'{"format": "veilrun-evidence", "version": 1, "evidence": [], "endorsements": []}'
    with pytest.raises(AppraisalError) as refusal:
        verify_evidence(empty, requirement(), Demands(bytes(32)))
    assert refusal.value.reason is Reason.MISSING


def test_applications_are_told_and_do_not_retry():
    reply = reply_to(AppraisalError(Reason.NONCE, "tpm: nonce", "an old one"))
    assert (reply.status, reply.code) == (503, "attestation_failed")
    assert reply.headers["x-should-retry"] == "false"
    assert "nothing was sent" in reply.message and "an old one" in reply.message


def test_options(tmp_path: Path):
    policy = tmp_path / "policy.toml"
    policy.write_text("[required]\ntpm = 1\n")
    assert _requirement(None, []) is None
    made = _requirement(policy, [])
    assert made is not None and isinstance(made.policy, AllOf)
    for arguments in ((None, [policy]), (tmp_path / "absent", [])):
        with pytest.raises(UsageError):
            _requirement(*arguments)
