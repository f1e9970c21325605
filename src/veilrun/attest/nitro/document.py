"""The document that a Nitro Security Module signs for its enclave: COSE_Sign1, CBOR.

    [protected {1: -35}, unprotected {}, payload, signature: r and s, 48 bytes each, big-endian]

-35 is ES384. The array may have the tag 18 (one byte, d2) before it. The signature is over the
CBOR of `["Signature1", protected, b"", payload]`. The payload is a map:

    module_id text    digest "SHA384"    timestamp, milliseconds    pcrs {0-31: 48 bytes}
    certificate, DER    cabundle, list of DER, the root first
    public_key, user_data, nonce: bytes or null, as the enclave asked for

Where the document begins: at the first byte, or where a dstack envelope (`dstack`) says; nothing is
searched for, and nothing may follow it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from cryptography import x509

from veilrun.attest.certificates import read_certificate
from veilrun.attest.claims import Kind
from veilrun.attest.dstack import parse_envelope, peek
from veilrun.attest.nitro.cbor import read_cbor, write_cbor
from veilrun.attest.reading import Cursor
from veilrun.errors import DecodeError
from veilrun.wire.fields import Fields

_MAX_BYTES: Final = 1 << 15
_START: Final = re.compile(rb"\xd2?\x84\x44\xa1\x01\x38\x22\xa0")
_TAG: Final = b"\xd2"
_PROTECTED: Final = bytes.fromhex("a1013822")
_NUMBER_BYTES: Final = 48
_PCR_BYTES: Final = 48
_PCRS: Final = range(32)
_MAX_FIELD_BYTES: Final = 1024
_MAX_BUNDLE: Final = 8
_LATEST: Final = datetime(9999, 12, 31, tzinfo=UTC)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, eq=False)
class NitroDocument:
    """bundle: the certificate's issuers. signed: the bytes that `signature` (r, s) is over.
    stated: the report data, as an envelope around the document states them.
    """

    module_id: str
    made_at: datetime
    pcrs: Mapping[int, bytes]
    certificate: x509.Certificate
    bundle: tuple[x509.Certificate, ...]
    public_key: bytes | None
    user_data: bytes | None
    nonce: bytes | None
    signed: bytes
    signature: tuple[int, int]
    stated: bytes | None = None

    @property
    def kind(self) -> Kind:
        """AWS Nitro."""
        return Kind.AWS_NITRO


def recognise(data: bytes) -> bool:
    """Whether `data` looks like a document, or an envelope with one."""
    return bool(_START.match(data) or _START.match(peek(data, Kind.AWS_NITRO)))


def parse(data: bytes) -> NitroDocument:
    """The document in `data`, see above."""
    if not peek(data, Kind.AWS_NITRO):
        return _document(data, None)
    envelope = parse_envelope(data, Kind.AWS_NITRO)
    return _document(envelope.evidence, envelope.report_data)


def _document(data: bytes, stated: bytes | None) -> NitroDocument:
    if len(data) > _MAX_BYTES:
        raise DecodeError(f"Nitro document of {len(data)} bytes is over {_MAX_BYTES}")
    parts = read_cbor(data.removeprefix(_TAG), "Nitro document")
    match parts:
        case [bytes() as protected, {**unprotected}, bytes() as payload, bytes() as signature]:
            pass
        case _:
            raise DecodeError("Nitro document is not a COSE_Sign1 array")
    if protected != _PROTECTED or unprotected:
        raise DecodeError(f"Nitro document: headers {protected[:16].hex()} are not ES384 alone")
    cursor = Cursor(signature, "Nitro signature", "big")
    numbers = cursor.number(_NUMBER_BYTES, "r"), cursor.number(_NUMBER_BYTES, "s")
    cursor.finish()
    content = read_cbor(payload, "Nitro payload")
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise DecodeError("Nitro payload is not a map with names")
    fields = Fields(content, "payload")
    fields.take("digest", _sha384)
    document = NitroDocument(
        module_id=fields.take("module_id", _name),
        made_at=fields.take("timestamp", _time),
        pcrs=fields.take("pcrs", _pcrs),
        certificate=fields.take("certificate", _certificate),
        bundle=fields.take("cabundle", _bundle),
        public_key=fields.take("public_key", _optional_bytes, None),
        user_data=fields.take("user_data", _optional_bytes, None),
        nonce=fields.take("nonce", _optional_bytes, None),
        signed=write_cbor(["Signature1", protected, b"", payload]),
        signature=numbers,
        stated=stated,
    )
    fields.finish()
    return document


def _sha384(value: Any, name: str) -> None:
    if value != "SHA384":
        raise DecodeError(f"{name} is not SHA384", field=name)


def _name(value: Any, name: str) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= _MAX_FIELD_BYTES:
        raise DecodeError(f"{name} is no name", field=name)
    return value


def _time(value: Any, name: str) -> datetime:
    # bool is an int in Python, and no time
    if type(value) is not int or not 0 <= value <= (_LATEST - _EPOCH) / timedelta(milliseconds=1):
        raise DecodeError(f"{name} is no time", field=name)
    return _EPOCH + timedelta(milliseconds=value)


def _pcrs(value: Any, name: str) -> dict[int, bytes]:
    if not isinstance(value, dict) or not {0, 1, 2} <= value.keys():
        raise DecodeError(f"{name} lacks one of PCR 0 to 2", field=name)
    for index, register in value.items():
        if type(index) is not int or index not in _PCRS:
            raise DecodeError(f"{name} has a register outside {_PCRS}", field=name)
        if not isinstance(register, bytes) or len(register) != _PCR_BYTES:
            raise DecodeError(f"{name}.{index} is not {_PCR_BYTES} bytes", field=name)
    return value


def _certificate(value: Any, name: str) -> x509.Certificate:
    if not isinstance(value, bytes) or len(value) > _MAX_FIELD_BYTES:
        raise DecodeError(f"{name} is no certificate", field=name)
    return read_certificate(value)


def _bundle(value: Any, name: str) -> tuple[x509.Certificate, ...]:
    if not isinstance(value, list) or not 1 <= len(value) <= _MAX_BUNDLE:
        raise DecodeError(f"{name} is not 1 to {_MAX_BUNDLE} certificates", field=name)
    return tuple(_certificate(one, name) for one in value)


def _optional_bytes(value: Any, name: str) -> bytes | None:
    if value is not None and not (isinstance(value, bytes) and len(value) <= _MAX_FIELD_BYTES):
        raise DecodeError(f"{name} is neither null nor {_MAX_FIELD_BYTES} bytes", field=name)
    return value
