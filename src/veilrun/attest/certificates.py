"""Certificates and revocation lists from PEM or DER. Reading them, not trusting them.

Invariant: bytes give values or `DecodeError`.
"""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, TypeVar

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.utils import CryptographyDeprecationWarning

from veilrun.attest.endorsements import Endorsements, joined
from veilrun.errors import DecodeError

_Signed = TypeVar("_Signed", x509.Certificate, x509.CertificateRevocationList)
_PEM_BLOCK: Final = re.compile(
    rb"-----BEGIN ([A-Z0-9 ]{1,40})-----[A-Za-z0-9+/=\s]*-----END \1-----"
)
_MAX_BLOCKS: Final = 256
MALFORMED: Final = (ValueError, TypeError, UserWarning, x509.InvalidVersion)
# A sequence whose length takes 1 to 3 bytes: shorter ones are no certificates, but may be text.
_DER: Final = (b"\x30\x81", b"\x30\x82", b"\x30\x83")


def is_pem(data: bytes) -> bool:
    """Whether `data` looks like PEM. Binary evidence may have PEM in it."""
    return b"-----BEGIN " in data[:4096] and data[:4096].isascii()


def is_der(data: bytes) -> bool:
    """Whether `data` looks like DER."""
    return data.startswith(_DER)


def read_pem(data: bytes) -> Endorsements:
    """All certificates and revocation lists of a PEM text, in order; nothing else may be in it."""
    blocks = list(_PEM_BLOCK.finditer(data))
    n_begun = data.count(b"-----BEGIN ")
    if not 1 <= len(blocks) <= _MAX_BLOCKS or len(blocks) != n_begun:
        raise DecodeError(
            f"PEM text with {len(blocks)} whole blocks of {n_begun}, {_MAX_BLOCKS} at most"
        )
    return joined(_block(one[1].decode("ascii"), one[0]) for one in blocks)


def read_der(data: bytes) -> Endorsements:
    """One certificate or one revocation list."""
    try:
        return Endorsements(certificates=(read_certificate(data),))
    except DecodeError:
        pass
    try:
        with _strictly():
            return Endorsements(revocations=(_named(x509.load_der_x509_crl(data)),))
    except MALFORMED as error:
        raise DecodeError("DER is neither a certificate nor a revocation list") from error


def read_certificate(data: bytes) -> x509.Certificate:
    """The certificate in `data`, DER."""
    try:
        with _strictly():
            return _named(x509.load_der_x509_certificate(data))
    except MALFORMED as error:
        raise DecodeError("DER is no certificate") from error


def common_name(one: x509.Certificate) -> str:
    """The subject's; empty if there is none."""
    names = one.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    return str(names[0].value) if len(names) == 1 else ""


def key_sha256(key: PublicKeyTypes) -> bytes:
    """How keys are named: SHA-256 of the SubjectPublicKeyInfo."""
    return hashlib.sha256(
        key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    ).digest()


def _block(label: str, pem: bytes) -> Endorsements:
    try:
        with _strictly():
            if label == "CERTIFICATE":
                return Endorsements(certificates=(_named(x509.load_pem_x509_certificate(pem)),))
            if label == "X509 CRL":
                return Endorsements(revocations=(_named(x509.load_pem_x509_crl(pem)),))
    except MALFORMED as error:
        raise DecodeError(f"PEM block {label} does not parse") from error
    raise DecodeError(f"PEM block {label} is neither a certificate nor a revocation list")


def _named(one: _Signed) -> _Signed:
    """It, if its names can be decoded: the library does that when they are first read."""
    _ = one.issuer, getattr(one, "subject", None)
    return one


@contextmanager
def _strictly() -> Iterator[None]:
    """What the library warns of is an error, e.g. a country of eleven letters; but AMD gives its
    chips' certificates the serial number zero.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.simplefilter("ignore", CryptographyDeprecationWarning)
        yield
