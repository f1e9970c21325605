"""Nitro evidence for tests: recorded cases as calls of `attest.nitro`, and a module of our own."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import cbor2
from amd_rig import endorsements
from attest_rig import data
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding

from veilrun.attest.checks import CheckLog
from veilrun.attest.claims import Claims
from veilrun.attest.nitro import authenticate, document
from veilrun.attest.pins import Pin

AT = datetime(2025, 6, 1, tzinfo=UTC)
PROTECTED = bytes.fromhex("a1013822")


def judge(case: dict[str, Any], log: CheckLog | None = None) -> Claims:
    """The case's evidence, authenticated; raises where it is refused."""
    content, at = data(case["evidence"]), datetime.fromisoformat(case["at"])
    assert document.recognise(content)
    return authenticate.authenticate(
        document.parse(content), endorsements(case["uses"]), at, log or CheckLog("nitro")
    )


class MadeModule:
    """A security module of our own, under a root of our own."""

    def __init__(self) -> None:
        root_key, self.key = (ec.generate_private_key(ec.SECP384R1()) for _ in range(2))
        self.root = _certificate("Test Root", root_key, root_key, is_root=True)
        self.leaf = _certificate("Test Module", self.key, root_key, is_root=False)

    @property
    def pins(self) -> tuple[Pin, ...]:
        """The root, as the one that is trusted."""
        return (Pin("Test Root", self.root.fingerprint(hashes.SHA256()).hex(), "test"),)

    def content(self, **changes: Any) -> dict[str, Any]:
        """What a document says; changes: other fields, `...` to leave one out."""
        fields = {
            "module_id": "i-1234-enc5678",
            "digest": "SHA384",
            "timestamp": int(AT.timestamp() * 1000),
            "pcrs": {index: bytes([index + 1]) * 48 for index in range(16)},
            "certificate": self.leaf.public_bytes(Encoding.DER),
            "cabundle": [self.root.public_bytes(Encoding.DER)],
            "public_key": None,
            "user_data": None,
            "nonce": None,
        } | changes
        return {name: value for name, value in fields.items() if value is not ...}

    def document(
        self,
        payload: bytes | Mapping[str, Any] | None = None,
        *,
        protected: bytes = PROTECTED,
        unprotected: Mapping[Any, Any] | None = None,
        tag: bytes = b"",
    ) -> bytes:
        """A document with this payload, signed."""
        if not isinstance(payload, bytes):
            payload = cbor2.dumps(self.content() if payload is None else payload)
        signed = cbor2.dumps(["Signature1", protected, b"", payload])
        r, s = decode_dss_signature(self.key.sign(signed, ec.ECDSA(hashes.SHA384())))
        signature = r.to_bytes(48, "big") + s.to_bytes(48, "big")
        return tag + cbor2.dumps([protected, dict(unprotected or {}), payload, signature])


def _certificate(
    subject: str,
    key: ec.EllipticCurvePrivateKey,
    signer: ec.EllipticCurvePrivateKey,
    *,
    is_root: bool,
) -> x509.Certificate:
    return (
        x509.CertificateBuilder()
        .subject_name(_name(subject))
        .issuer_name(_name("Test Root"))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(AT - timedelta(hours=1))
        .not_valid_after(AT + timedelta(hours=2))
        .add_extension(x509.BasicConstraints(is_root, None), True)
        .sign(signer, hashes.SHA384())
    )


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common)])
