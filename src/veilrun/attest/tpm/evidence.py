"""The files that TPM quotes come in.

    JSON        {"message": hex, "signature": hex, "pcrs": [24 values, hex]}: attested message
                (`quote`), its signature, all registers of the bank. Ours add
                "attestation_key": the public key that has signed, as PEM
    bincode     the same in binary, little-endian: 8 + n signature, 8 + n message, 8 + n * 32
                registers
    Azure       {"platform": "az-snp" or "az-tdx", "evidence": {"version": 1, "tpm_quote": the JSON
                above, "hcl_report": base64url, "vcek" or "td_quote": base64url}}: the paravisor's
                report (`hcl`) has the key, and rests on the TEE's own evidence
    message     alone: it parses, and nothing vouches for it

Registers that a quote does not select are read and dropped.

Invariant: bytes give a value or `DecodeError`; `UsageError` only where a library is missing.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from veilrun.attest.certificates import read_certificate
from veilrun.attest.claims import Kind
from veilrun.attest.hcl import HclReport, parse_hcl
from veilrun.attest.kinds import Evidence, read_evidence
from veilrun.attest.reading import Cursor
from veilrun.attest.tpm import quote as quotes
from veilrun.attest.tpm.quote import N_REGISTERS, Quote, QuoteSignature
from veilrun.errors import DecodeError
from veilrun.wire.fields import Fields, at_most, json_object, list_of, mapping, one_of, within

_MAX_BYTES: Final = 1 << 18
_BANK_BYTES: Final = {"sha256": 32, "sha384": 48}
_PLATFORMS: Final = {"az-snp": Kind.AMD_SEV_SNP, "az-tdx": Kind.INTEL_TDX}


@dataclass(frozen=True, eq=False)
class Azure:
    """What a cloud's virtual TPM rests on. endorsement: of the chip, where it is at hand."""

    report: HclReport
    tee: Evidence
    endorsement: x509.Certificate | None


@dataclass(frozen=True, eq=False)
class TpmEvidence:
    """One TPM's quote. signature, values, key: None where the file has none.

    values: register -> value, of those selected.
    """

    quote: Quote
    signature: QuoteSignature | None = None
    values: Mapping[int, bytes] | None = None
    key: PublicKeyTypes | None = None
    azure: Azure | None = None

    @property
    def kind(self) -> Kind:
        """As all evidence has it."""
        return Kind.TPM


def recognise(data: bytes) -> bool:
    """Whether `data` looks like a TPM's quote."""
    if data.lstrip()[:1] == b"{":
        return b'"message"' in data and b'"signature"' in data
    if data.startswith(quotes.START):
        return True
    return len(data) <= _MAX_BYTES and _message_of_bincode(data).startswith(quotes.START)


def parse(data: bytes) -> TpmEvidence:
    """The evidence in `data`, in one of the forms above."""
    if len(data) > _MAX_BYTES:
        raise DecodeError(f"TPM evidence of {len(data)} bytes is over {_MAX_BYTES}")
    if data.startswith(quotes.START):
        return TpmEvidence(quotes.parse_quote(data))
    if data.lstrip()[:1] != b"{":
        return _bincode(data)
    fields = Fields(json_object(data), "")
    platform = fields.take("platform", one_of(*_PLATFORMS), "")
    if not platform:
        return _quoted(fields)
    body = Fields(fields.take("evidence", mapping), "evidence")
    fields.finish()
    return _azure(_PLATFORMS[platform], body)


def encode_evidence(message: bytes, signature: bytes, values: list[bytes], key_pem: str) -> bytes:
    """Our form, from what a TPM gives. values: of all registers of the bank."""
    body = {
        "message": message.hex(),
        "signature": signature.hex(),
        "pcrs": [value.hex() for value in values],
        "attestation_key": key_pem,
    }
    return json.dumps(body).encode()


def _azure(kind: Kind, body: Fields) -> TpmEvidence:
    body.take("version", within(1, 1))
    inner = _quoted(Fields(body.take("tpm_quote", mapping), "tpm_quote"))
    report = parse_hcl(body.take("hcl_report", _base64url))
    if report.kind is not kind or inner.key is not None:
        raise DecodeError(f"the paravisor's report is of {report.kind}, not of {kind}")
    endorsement = None
    if kind is Kind.AMD_SEV_SNP:
        tee, vcek = report.tee_report, body.take("vcek", _base64url, None)
        endorsement = None if vcek is None else read_certificate(vcek)
    else:
        tee = body.take("td_quote", _base64url)
    body.finish()
    (evidence,) = read_evidence(tee, kind)
    azure = Azure(report, evidence, endorsement)
    return TpmEvidence(inner.quote, inner.signature, inner.values, None, azure)


def _quoted(fields: Fields) -> TpmEvidence:
    quote = quotes.parse_quote(fields.take("message", _hex))
    signature = quotes.parse_signature(fields.take("signature", _hex))
    values = fields.take("pcrs", at_most(N_REGISTERS, list_of(_hex)), None)
    key = fields.take("attestation_key", _public_key, None)
    fields.finish()
    return TpmEvidence(quote, signature, _selected(quote, values), key)


def _bincode(data: bytes) -> TpmEvidence:
    cursor = Cursor(data, "TPM quote in binary")
    signature = quotes.parse_signature(cursor.sized(8, "signature", quotes.MAX_BYTES))
    quote = quotes.parse_quote(cursor.sized(8, "message", quotes.MAX_BYTES))
    n_values = cursor.number(8, "number of registers")
    if n_values != N_REGISTERS:
        raise DecodeError(f"TPM quote with {n_values} registers, not {N_REGISTERS}")
    size = _BANK_BYTES["sha256"]
    values = [cursor.take(size, "register") for _ in range(n_values)]
    cursor.finish()
    return TpmEvidence(quote, signature, _selected(quote, values))


def _message_of_bincode(data: bytes) -> bytes:
    try:
        cursor = Cursor(data, "TPM quote in binary")
        cursor.sized(8, "signature", quotes.MAX_BYTES)
        return cursor.sized(8, "message", quotes.MAX_BYTES)
    except DecodeError:
        return b""


def _selected(quote: Quote, values: list[bytes] | None) -> Mapping[int, bytes] | None:
    if values is None:
        return None
    size = _BANK_BYTES[quote.bank]
    if len(values) != N_REGISTERS or any(len(value) != size for value in values):
        raise DecodeError(f"TPM quote: needs {N_REGISTERS} registers of {size} bytes each")
    return {number: values[number] for number in quote.selected}


def _hex(value: Any, name: str) -> bytes:
    try:
        data = bytes.fromhex(value)
    except (TypeError, ValueError) as error:
        raise DecodeError(f"{name} is not hex", field=name) from error
    return data


def _base64url(value: Any, name: str) -> bytes:
    if not isinstance(value, str):
        raise DecodeError(f"{name} must be base64url", field=name)
    try:
        text = value.rstrip("=")
        return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except ValueError as error:
        raise DecodeError(f"{name} is not base64url", field=name) from error


def _public_key(value: Any, name: str) -> PublicKeyTypes:
    if not isinstance(value, str):
        raise DecodeError(f"{name} must be text", field=name)
    try:
        return load_pem_public_key(value.encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise DecodeError(f"{name} is no public key in PEM form", field=name) from error
