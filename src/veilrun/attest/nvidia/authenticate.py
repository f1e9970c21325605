"""Is a report of a genuine NVIDIA device, and does it measure as the vendor says?

Steps of `verify`:
1. The nonce that the file states is the one in the request.
2. A device certificate's key has signed request and response (ECDSA P-384, SHA-384).
3. That certificate leads to NVIDIA's device root at the time, and is for such a device.
4. The firmware id in the report is the one in the certificate, where the report has one.
5. Driver and VBIOS measure as their manifests say, where these are at hand (`references`).

The device's certificate comes with the report or from files.

Covered: who made the report, over which nonce, on which firmware. Not covered: online revocation
(the vendor has OCSP only), which switch a GPU is wired to, how the firmware's flags in a Blackwell
certificate are set.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from veilrun.attest.chains import verified_chain
from veilrun.attest.checks import CheckLog
from veilrun.attest.claims import Claims, Kind, Tcb
from veilrun.attest.endorsements import Endorsements
from veilrun.attest.nvidia.evidence import DeviceEvidence
from veilrun.attest.nvidia.references import compare_references
from veilrun.attest.nvidia.report import DeviceReport
from veilrun.attest.pins import NVIDIA_DEVICE
from veilrun.attest.reasons import AppraisalError, Reason

# DICE extensions with the firmware id: CompositeDeviceId (Hopper), DiceTcbInfo (Blackwell).
_FIRMWARE_OIDS: Final = tuple(
    x509.ObjectIdentifier(oid) for oid in ("2.23.133.5.4.1", "2.23.133.5.4.1.1")
)
# SEQUENCE { OBJECT IDENTIFIER sha384, OCTET STRING of 48 bytes }, without these bytes.
_FIRMWARE_ID: Final = bytes.fromhex("303d06096086480165030402020430")
_CHIPS: Final = {
    Kind.NVIDIA_GPU: re.compile(r"(G[A-Z][0-9]{3})\b.*"),
    Kind.NVIDIA_SWITCH: re.compile(r"(LS_[0-9]{2})\b.*"),
}


def authenticate(
    evidence: DeviceEvidence, endorsements: Endorsements, at: datetime, log: CheckLog
) -> Claims:
    """Steps as above. `tcb` is `success` if all reference measurements agree, in the vendor's
    words, and `not-run` if manifests are missing.

    Raises:
        AppraisalError: nonce, no-endorsement, signature, chain, expired, not-yet-valid, revoked,
            measurement, digest.
    """
    report = evidence.report
    with log.step("stated nonce"):
        # 1. nonce
        _verify_nonce(evidence)
    certificates = evidence.certificates or endorsements.certificates
    with log.step("report signature"):
        # 2. signature
        leaf = _signer(report, certificates)
    with log.step("device certificates"):
        # 3. chain
        at_hand = endorsements + Endorsements(evidence.certificates)
        chain = verified_chain(leaf, at_hand, NVIDIA_DEVICE, at, "device certificates")
        chip, identity = _identity(chain, report.kind)
    # 4. firmware
    if report.firmware_id is None:
        log.skip("firmware id", "this firmware's reports have none")
    else:
        with log.step("firmware id"):
            _verify_firmware_id(report.firmware_id, leaf)
    # 5. manifests
    complete = compare_references(report, chip, endorsements, at, log)
    return Claims(
        report.kind,
        measurements=report.measurements(),
        versions=report.versions(),
        identity=identity,
        nonce=report.nonce,
        tcb=Tcb("success" if complete else "not-run"),
    )


def _verify_nonce(evidence: DeviceEvidence) -> None:
    asked = evidence.report.nonce
    if evidence.nonce is not None and evidence.nonce != asked:
        raise AppraisalError(
            Reason.NONCE,
            "stated nonce",
            f"the file states {evidence.nonce[:32].hex()}, the request has {asked.hex()}",
        )


def _signer(report: DeviceReport, certificates: Sequence[x509.Certificate]) -> x509.Certificate:
    """The device certificate whose key has signed the report; several devices' may be at hand."""
    devices = [one for one in certificates if _firmware_extension(one) is not None]
    if not devices:
        raise AppraisalError(
            Reason.NO_ENDORSEMENT, "report signature", "no certificate of a device at hand"
        )
    for one in devices:
        if _has_signed(one, report):
            return one
    raise AppraisalError(
        Reason.SIGNATURE,
        "report signature",
        f"none of the {len(devices)} device certificates at hand has signed the report",
    )


def _has_signed(device: x509.Certificate, report: DeviceReport) -> bool:
    half = len(report.signature) // 2
    r = int.from_bytes(report.signature[:half], "big")
    s = int.from_bytes(report.signature[half:], "big")
    try:
        key = device.public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(
            key.curve, ec.SECP384R1
        ):
            return False
        key.verify(encode_dss_signature(r, s), report.signed, ec.ECDSA(hashes.SHA384()))
    except (InvalidSignature, UnsupportedAlgorithm, ValueError):
        return False
    return True


def _firmware_extension(one: x509.Certificate) -> bytes | None:
    """The extension that only certificates of a device's firmware have."""
    try:
        extensions = list(one.extensions)
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
        return None
    for extension in extensions:
        if extension.oid in _FIRMWARE_OIDS and isinstance(
            extension.value, x509.UnrecognizedExtension
        ):
            return extension.value.value
    return None


def _verify_firmware_id(stated: bytes, leaf: x509.Certificate) -> None:
    # Blackwell's extension has two firmware ids; the first is the firmware that signs.
    _, _, rest = (_firmware_extension(leaf) or b"").partition(_FIRMWARE_ID)
    if len(stated) != hashes.SHA384.digest_size or rest[: len(stated)] != stated:
        raise AppraisalError(
            Reason.MEASUREMENT,
            "firmware id",
            f"the report says {stated[:48].hex()}, the certificate {rest[:48].hex()}",
        )


def _identity(chain: Sequence[x509.Certificate], kind: Kind) -> tuple[str, dict[str, str]]:
    """The chip (`GH100`), and which one it is.

    Both are of the boot ROM's certificate, the second: the vendor made it with the device. The
    first one changes with firmware, and one device must not count as two.
    """
    subject = chain[1].subject if len(chain) > 1 else x509.Name([])
    names = subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    serials = subject.get_attributes_for_oid(x509.NameOID.SERIAL_NUMBER)
    found = _CHIPS[kind].fullmatch(str(names[0].value)) if names else None
    if found is None or not serials:
        raise AppraisalError(
            Reason.CHAIN,
            "device certificates",
            f"{subject.rfc4514_string()!r} does not make an {kind}",
        )
    chip = found[1].replace("_", "")
    return chip, {"chip": chip, "chip_id": str(serials[0].value).lower()}
