"""A quote: a report, signed by a key of Intel's quoting enclave on that machine. Little-endian.

    header        48   version 2 (3, 4 or 5), type of key 2 (2: ECDSA P-256), TEE 4 (0 SGX,
                       81 hex TDX), 4, vendor 16 (Intel's quoting enclave), user data 20
    version 5          type of report 2 (1 SGX, 2 TD 1.0, 3 TD 1.5), its size 4
    report             see `reports`
    signature data     4 + n:
      signature    64  of the quoting enclave's key over all before the length
      key          64  x and y
      version 4, 5     type 2 (6), 4 + n, which wraps the rest:
      enclave     384  report of the quoting enclave, and 64: its signature by the PCK
      data             2 + n, the quoting enclave's own
      certificates     type 2 (5: as PEM, PCK first), 4 + n

What follows is the rest of the buffer that the quote was given in; nobody signs or reads it.

Not covered: certification data other than type 5 (the PCK's certificate elsewhere), reports of
version 5 with type 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cryptography import x509

from veilrun.attest.certificates import read_pem
from veilrun.attest.claims import Kind
from veilrun.attest.intel.reports import (
    ENCLAVE_BYTES,
    TD_15_BYTES,
    TD_BYTES,
    EnclaveReport,
    TdReport,
    parse_enclave,
    parse_td,
)
from veilrun.attest.reading import Cursor
from veilrun.errors import DecodeError

MAX_BYTES: Final = 1 << 16
_VERSIONS: Final = (3, 4, 5)
_ECDSA_P256: Final = b"\2\0"
_SGX, _TDX = 0, 0x81
_VENDOR_AT: Final = 12
_VENDOR: Final = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
_PEM_CHAIN, _WRAPPED = 5, 6
_MAX_CERTIFICATES: Final = 8
# Version 5: type of report -> TEE, size.
_REPORTS: Final = {1: (_SGX, ENCLAVE_BYTES), 2: (_TDX, TD_BYTES), 3: (_TDX, TD_15_BYTES)}


@dataclass(frozen=True, eq=False)
class Quote:
    """One quote. data: all of it, without what follows. signed: what `signature` is over.

    key: the quoting enclave's, x and y. enclave: its report, `enclave_data` its bytes, signed by
    the PCK as `enclave_signature`. own_data: what it adds to its key. certificates: PCK first.
    """

    data: bytes
    version: int
    report: EnclaveReport | TdReport
    signed: bytes
    signature: bytes
    key: bytes
    enclave: EnclaveReport
    enclave_data: bytes
    enclave_signature: bytes
    own_data: bytes
    certificates: tuple[x509.Certificate, ...]

    @property
    def kind(self) -> Kind:
        """SGX or TDX."""
        return self.report.kind


def is_quote(data: bytes) -> bool:
    """Whether `data` begins like a quote."""
    version = int.from_bytes(data[:2], "little")
    return version in _VERSIONS and data[_VENDOR_AT:].startswith(_VENDOR)


def parse_quote(data: bytes) -> Quote:
    """The quote in `data`, see above."""
    if len(data) > MAX_BYTES:
        raise DecodeError(f"quote of {len(data)} bytes is over {MAX_BYTES}")
    cursor = Cursor(data, "quote")
    version, report = _report(cursor)
    signed = data[: cursor.at]
    rest = Cursor(cursor.sized(4, "signature data", MAX_BYTES), "signature data of the quote")
    signature, key = rest.take(64, "signature"), rest.take(64, "key")
    if version > 3:
        wrapped = _of_type(rest, _WRAPPED)
        rest.finish()
        rest = Cursor(wrapped, "certification data of the quote")
    enclave_data = rest.take(ENCLAVE_BYTES, "report of the quoting enclave")
    enclave_signature = rest.take(64, "signature of that report")
    own_data = rest.sized(2, "data of the quoting enclave", MAX_BYTES)
    pem = _of_type(rest, _PEM_CHAIN)
    rest.finish()
    return Quote(
        data[: cursor.at],
        version,
        report,
        signed,
        signature,
        key,
        parse_enclave(enclave_data),
        enclave_data,
        enclave_signature,
        own_data,
        _certificates(pem),
    )


def _report(cursor: Cursor) -> tuple[int, EnclaveReport | TdReport]:
    """Version, and the report that is quoted."""
    version = cursor.number(2, "version")
    if version not in _VERSIONS:
        raise DecodeError(f"quote: version {version} is none of {_VERSIONS}")
    cursor.expect(_ECDSA_P256, "type of key")
    tee = cursor.number(4, "TEE")
    cursor.take(4, "versions of the quoting enclave")
    cursor.expect(_VENDOR, "vendor of the quoting enclave")
    cursor.take(20, "user data")
    if tee not in (_SGX, _TDX) or (version == 3 and tee != _SGX):
        raise DecodeError(f"quote: version {version} of TEE {tee:#x}")
    size = ENCLAVE_BYTES if tee == _SGX else TD_BYTES
    if version == 5:
        number, size = cursor.number(2, "type of report"), cursor.number(4, "size of report")
        if _REPORTS.get(number) != (tee, size):
            raise DecodeError(f"quote: report of type {number} and {size} bytes for TEE {tee:#x}")
    body = cursor.take(size, "report")
    return version, parse_enclave(body) if tee == _SGX else parse_td(body)


def _of_type(cursor: Cursor, expected: int) -> bytes:
    number = cursor.number(2, "type of certification data")
    if number != expected:
        raise DecodeError(f"quote: certification data of type {number}, only {expected} is read")
    return cursor.sized(4, "certification data", MAX_BYTES)


def _certificates(pem: bytes) -> tuple[x509.Certificate, ...]:
    found = read_pem(pem)
    if found.revocations or not 1 <= len(found.certificates) <= _MAX_CERTIFICATES:
        raise DecodeError(f"quote: 1 to {_MAX_CERTIFICATES} certificates, and nothing else")
    return found.certificates
