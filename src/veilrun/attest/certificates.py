"""Certificates and revocation lists from PEM or DER. Reading them, not trusting them.

Invariant: bytes give values or `DecodeError`.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from cryptography import x509
from cryptography.utils import CryptographyDeprecationWarning

from veilrun.attest.endorsements import Endorsements, joined
from veilrun.errors import DecodeError

_PEM_BLOCK: Final = re.compile(
    rb"-----BEGIN ([A-Z0-9 ]{1,40})-----[A-Za-z0-9+/=\s]*-----END \1-----"
)
_MAX_BLOCKS: Final = 256
# A sequence whose length takes 1 to 3 bytes: shorter ones are no certificates, but may be text.
_DER: Final = (b"\x30\x81", b"\x30\x82", b"\x30\x83")


def is_pem(data: bytes) -> bool:
    """Whether `data` looks like PEM."""
    return b"-----BEGIN " in data[:4096]


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
        return Endorsements(revocations=(x509.load_der_x509_crl(data),))
    except ValueError as error:
        raise DecodeError("DER is neither a certificate nor a revocation list") from error


def read_certificate(data: bytes) -> x509.Certificate:
    """The certificate in `data`, DER."""
    try:
        with _any_serial():
            return x509.load_der_x509_certificate(data)
    except ValueError as error:
        raise DecodeError("DER is no certificate") from error


def _block(label: str, pem: bytes) -> Endorsements:
    try:
        if label == "CERTIFICATE":
            with _any_serial():
                return Endorsements(certificates=(x509.load_pem_x509_certificate(pem),))
        if label == "X509 CRL":
            return Endorsements(revocations=(x509.load_pem_x509_crl(pem),))
    except ValueError as error:
        raise DecodeError(f"PEM block {label} does not parse") from error
    raise DecodeError(f"PEM block {label} is neither a certificate nor a revocation list")


@contextmanager
def _any_serial() -> Iterator[None]:
    """AMD gives its chips' certificates the serial number zero; the library warns of that."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CryptographyDeprecationWarning)
        yield
