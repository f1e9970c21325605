"""SEV-SNP evidence for tests: recorded cases as calls of `attest.amd`, and a chip of our own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

from attest_rig import data
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from veilrun.attest.amd import authenticate, evidence
from veilrun.attest.certificates import is_pem, read_der, read_pem
from veilrun.attest.checks import CheckLog
from veilrun.attest.claims import Claims
from veilrun.attest.endorsements import Endorsements, joined
from veilrun.attest.pins import Pin

AT = datetime(2025, 6, 1, tzinfo=UTC)
_ARC = "1.3.6.1.4.1.3704.1"
_PSS = padding.PSS(padding.MGF1(hashes.SHA384()), hashes.SHA384.digest_size)
_DIGITS = {"bootloader": "1", "tee": "2", "snp": "3", "microcode": "8", "fmc": "9"}


def endorsements(names: list[str]) -> Endorsements:
    """Certificates and lists of these files."""
    return joined(
        read_pem(content) if is_pem(content) else read_der(content) for content in map(data, names)
    )


def judge(case: dict[str, Any], log: CheckLog | None = None) -> Claims:
    """The case's evidence, authenticated; raises where it is refused."""
    content, at = data(case["evidence"]), datetime.fromisoformat(case["at"])
    assert evidence.recognise(content)
    return authenticate.authenticate(
        evidence.parse(content), endorsements(case["uses"]), at, log or CheckLog("amd")
    )


@dataclass
class MadeChip:
    """A chip of our own, under a root of our own. chip_id, cloud: in its key's certificate."""

    product: str = "Turin"
    signer: str = "VCEK"
    issuer_name: str = "SEV-Turin"
    tcb: Mapping[str, int] = field(
        default_factory=lambda: {"fmc": 1, "bootloader": 2, "tee": 0, "snp": 200, "microcode": 90}
    )
    chip_id: bytes | None = bytes(range(1, 9))
    cloud: bytes | None = None

    def __post_init__(self) -> None:
        root_key, issuer_key = _rsa_key(0), _rsa_key(1)
        self.key = ec.generate_private_key(ec.SECP384R1())
        self.root = _certificate(f"ARK-{self.product}", root_key, f"ARK-{self.product}", root_key)
        self.issuer = _certificate(self.issuer_name, issuer_key, f"ARK-{self.product}", root_key)
        values = {f"3.{_DIGITS[name]}": _integer(value) for name, value in self.tcb.items()}
        values |= {} if self.chip_id is None else {"4": self.chip_id}
        values |= {} if self.cloud is None else {"5": self.cloud}
        self.leaf = _certificate(
            f"SEV-{self.signer}", self.key, self.issuer_name, issuer_key, values
        )

    @property
    def pins(self) -> tuple[Pin, ...]:
        """The root, as the one that is trusted."""
        digest = self.root.fingerprint(hashes.SHA256()).hex()
        return (Pin(f"AMD ARK-{self.product}", digest, "test"),)

    @property
    def endorsements(self) -> Endorsements:
        """All certificates."""
        return Endorsements((self.leaf, self.issuer, self.root))

    def revoking(self) -> Endorsements:
        """All certificates, and a list of the root that revokes the issuer."""
        one = x509.RevokedCertificateBuilder().serial_number(self.issuer.serial_number)
        crl = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.root.subject)
            .last_update(AT - timedelta(days=1))
            .next_update(AT + timedelta(days=1))
            .add_revoked_certificate(one.revocation_date(AT).build())
            .sign(_rsa_key(0), hashes.SHA384(), rsa_padding=_PSS)
        )
        return self.endorsements + Endorsements(revocations=(crl,))

    def report(self, changes: Mapping[int, bytes] | None = None) -> bytes:
        """A report of version 5, signed; changes: offset -> other bytes, before it is signed."""
        content = bytearray(0x2A0)
        fields = {
            0x00: b"\5",
            0x08: (0x30000).to_bytes(8, "little"),
            0x34: b"\1",
            0x48: b"\4" if self.signer == "VLEK" else b"\0",
            0x50: bytes(range(64)),
            0x90: b"\x11" * 48,
            0x180: bytes([1, 2, 0, 200, 0, 0, 0, 90]),
            0x188: bytes([0x1A, 0x02, 0x01]),
            0x1A0: self.chip_id or b"",
            0x1E8: bytes([29, 55, 1]),
        }
        for at, value in (fields | dict(changes or {})).items():
            content[at : at + len(value)] = value
        r, s = decode_dss_signature(self.key.sign(bytes(content), ec.ECDSA(hashes.SHA384())))
        return bytes(content) + r.to_bytes(72, "little") + s.to_bytes(72, "little") + bytes(368)


@cache
def _rsa_key(which: int) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


def _integer(value: int) -> bytes:
    content = bytes([value]) if value < 0x80 else bytes([0, value])
    return bytes([2, len(content)]) + content


def _certificate(
    subject: str,
    key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey,
    issuer: str,
    signer: rsa.RSAPrivateKey,
    extensions: Mapping[str, bytes] | None = None,
) -> x509.Certificate:
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(subject))
        .issuer_name(_name(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(AT - timedelta(days=1))
        .not_valid_after(AT + timedelta(days=1))
    )
    if extensions is None:
        builder = builder.add_extension(x509.BasicConstraints(True, None), True)
    for name, value in (extensions or {}).items():
        oid = x509.ObjectIdentifier(f"{_ARC}.{name}")
        builder = builder.add_extension(x509.UnrecognizedExtension(oid, value), False)
    return builder.sign(signer, hashes.SHA384(), rsa_padding=_PSS)


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common)])
