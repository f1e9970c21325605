"""Recorded SGX and TDX evidence for tests, and evidence like it under a root of our own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import nvidia_rig
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from veilrun.attest.bundle import Bundle
from veilrun.attest.checks import CheckLog
from veilrun.attest.claims import Claims
from veilrun.attest.endorsements import Endorsements, joined
from veilrun.attest.event_logs import parse_event_log, verify_registers
from veilrun.attest.files import read
from veilrun.attest.intel import authenticate, collateral, evidence
from veilrun.attest.intel.quotes import Quote, parse_quote
from veilrun.attest.intel.reports import parse_tdreport
from veilrun.attest.pins import Pin

FOLDER = nvidia_rig.FOLDER / "sgx-tdx"
AT = datetime(2025, 6, 20, 12, tzinfo=UTC)
TDX, SGX = "tdx-v4-quote-b0c06f-uptodate.bin", "sgx-v3-quote.bin"
TDX_COLLATERAL = "collateral-tdx-b0c06f000000-2025-06.json"
SGX_COLLATERAL = "collateral-sgx-00a067110000-2025-06.json"
DSTACK = "tdx-dstack-quote-report.json"
SCALE = "tdx-dstack-guest-agent-attestation.scale"
_PCK_EXTENSION = x509.ObjectIdentifier("1.2.840.113741.1.13.1")
_ROOT, _PLATFORM, _PCK, _SIGNER = range(4)
_NAMES = (
    "Intel SGX Root CA",
    "Intel SGX PCK Platform CA",
    "Intel SGX PCK Certificate",
    "Intel SGX TCB Signing",
)

Json = dict[str, Any]


def data(name: str) -> bytes:
    """A recorded file; without it the test is skipped."""
    if not FOLDER.is_dir():
        pytest.skip("needs recorded evidence (../shared/attestation), which is not here")
    return (FOLDER / name).read_bytes()


def endorsements(*names: str) -> Endorsements:
    """What is in these files."""
    return joined(read(data(name)).endorsements for name in names)


def examine(content: bytes, at_hand: Endorsements, at: datetime = AT) -> tuple[Claims, CheckLog]:
    """What the command does with a file; raises where it is refused."""
    log = CheckLog("intel")
    return authenticate.authenticate(evidence.parse(content), at_hand, at, log), log


def is_special(case: Json) -> bool:
    """Whether a case is not a file that `appraise` takes as it is."""
    return case["id"] in ("tdx-ccel-other-boot-tdreport", "tdx-dstack-quote-report-event-removed")


def judge(case: Json) -> None:
    """A special case: a log against a TDREPORT, which nobody signs; a log without its end."""
    name = case["evidence"].removeprefix("sgx-tdx/")
    uses = [one.removeprefix("sgx-tdx/") for one in case["uses"]]
    if name == DSTACK:
        body = json.loads(data(name))
        body["event_log"] = json.dumps(json.loads(body["event_log"])[:-1])
        examine(json.dumps(body).encode(), endorsements(*uses), nvidia_rig.time(case["at"]))
    else:
        registers = parse_tdreport(data(uses[0])).registers()
        verify_registers(parse_event_log(data(name)), "sha384", registers, "event log")


@dataclass
class Made:
    """A platform of our own: a recorded one, whose keys and certificates are ours.

    revoked: which of our certificates are on lists. names: of certificates, instead of Intel's.
    """

    collateral: str = TDX_COLLATERAL
    quote: Quote = field(default_factory=lambda: parse_quote(data(TDX)))
    revoked: tuple[int, ...] = ()
    names: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.keys = [ec.generate_private_key(ec.SECP256R1()) for _ in _NAMES]
        self.quoting_key = ec.generate_private_key(ec.SECP256R1())
        issuers = (_ROOT, _ROOT, _PLATFORM, _ROOT)
        self.certificates = [self._certificate(at, issuer) for at, issuer in enumerate(issuers)]

    def patch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Pin our root instead of Intel's."""
        digest = self.certificates[_ROOT].fingerprint(hashes.SHA256()).hex()
        for module in (authenticate, collateral):
            monkeypatch.setattr(module, "INTEL", (Pin("test root", digest, "here"),))

    def made(
        self,
        version: int = 4,
        report: Callable[[bytearray], None] = lambda _: None,
        enclave: Callable[[bytearray], None] = lambda _: None,
    ) -> bytes:
        """A quote. report, enclave: change what is signed."""
        recorded = self.quote
        start = 54 if recorded.version == 5 else 48
        body, own = bytearray(recorded.signed[start:]), bytearray(recorded.enclave_data)
        report(body)
        point = self.quoting_key.public_key().public_numbers()
        key = point.x.to_bytes(32, "big") + point.y.to_bytes(32, "big")
        own[320:] = hashlib.sha256(key + recorded.own_data).digest().ljust(64, b"\0")
        enclave(own)
        header = version.to_bytes(2, "little") + recorded.signed[2:48]
        if version == 5:
            number = {384: 1, 584: 2, 648: 3}[len(body)]
            header += number.to_bytes(2, "little") + len(body).to_bytes(4, "little")
        signed = header + bytes(body)
        pem = b"".join(
            self.certificates[at].public_bytes(Encoding.PEM) for at in (_PCK, _PLATFORM, _ROOT)
        )
        certified = bytes(own) + _sign(self.keys[_PCK], bytes(own))
        certified += _sized(recorded.own_data, 2) + b"\5\0" + _sized(pem)
        if version > 3:
            certified = b"\6\0" + _sized(certified)
        return signed + _sized(_sign(self.quoting_key, signed) + key + certified)

    def endorsements(
        self,
        tcb_info: Callable[[Json], None] = lambda _: None,
        identity: Callable[[Json], None] = lambda _: None,
    ) -> Endorsements:
        """Its collateral, in the form of dcap-qvl. tcb_info, identity: change what is signed."""
        body = json.loads(data(self.collateral))
        for name, change in (("tcb_info", tcb_info), ("qe_identity", identity)):
            document = json.loads(body[name])
            change(document)
            body[name] = json.dumps(document)
            signature = _sign(self.keys[_SIGNER], body[name].encode())
            body[f"{name}_signature"] = signature.hex()
            body[f"{name}_issuer_chain"] = self._pem(_SIGNER, _ROOT)
        body["pck_crl_issuer_chain"] = self._pem(_PLATFORM, _ROOT)
        body["root_ca_crl"], body["pck_crl"] = self._list(_ROOT), self._list(_PLATFORM)
        return Endorsements(collateral=(json.dumps(body).encode(),))

    def _named(self, which: int) -> x509.Name:
        common = self.names.get(which, _NAMES[which])
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])

    def _pem(self, *which: int) -> str:
        return b"".join(self.certificates[at].public_bytes(Encoding.PEM) for at in which).decode()

    def _list(self, issuer: int) -> str:
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self._named(issuer))
            .last_update(AT - timedelta(days=1))
            .next_update(AT + timedelta(days=1))
            .add_extension(x509.CRLNumber(1), critical=False)
        )
        for at in self.revoked:
            if self.certificates[at].issuer == self._named(issuer):
                one = x509.RevokedCertificateBuilder().revocation_date(AT - timedelta(days=1))
                serial = self.certificates[at].serial_number
                builder = builder.add_revoked_certificate(one.serial_number(serial).build())
        return builder.sign(self.keys[issuer], hashes.SHA256()).public_bytes(Encoding.DER).hex()

    def _certificate(self, at: int, issuer: int) -> x509.Certificate:
        is_authority = at in (_ROOT, _PLATFORM)
        builder = (
            x509.CertificateBuilder()
            .subject_name(self._named(at))
            .issuer_name(self._named(issuer))
            .public_key(self.keys[at].public_key())
            .serial_number(1000 + at)
            .not_valid_before(AT - timedelta(days=9))
            .not_valid_after(AT + timedelta(days=9))
            .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        )
        if at == _PCK:
            real = self.quote.certificates[0].extensions.get_extension_for_oid(_PCK_EXTENSION)
            builder = builder.add_extension(real.value, critical=False)
        return builder.sign(self.keys[issuer], hashes.SHA256())


REVOKED_PCK, REVOKED_PLATFORM, REVOKED_SIGNER = (_PCK,), (_PLATFORM,), (_SIGNER,)


def bundle_of(content: bytes, at_hand: Endorsements) -> Bundle:
    """As `appraise` takes it."""
    return read(content) + Bundle(endorsements=at_hand)


def _sign(key: ec.EllipticCurvePrivateKey, signed: bytes) -> bytes:
    r, s = decode_dss_signature(key.sign(signed, ec.ECDSA(hashes.SHA256())))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def _sized(content: bytes, length_bytes: int = 4) -> bytes:
    return len(content).to_bytes(length_bytes, "little") + content
