"""What NVIDIA's remote attestation service (NRAS) hands out: tokens, and their certificates.

A token is a JSON list: `["JWT", all]`, then an object of a JWT for each device; `all` has the
SHA-256 of each. Its signer's certificate lives for two days, under a pinned intermediate.

Covered: the structure of tokens, the digests in them, the chain of a signer's certificate. Not
covered: a token's own signature; tokens say what the service found and are no evidence of a device.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from cryptography import x509

from veilrun.attest.certificates import MALFORMED
from veilrun.attest.chains import verify_chain
from veilrun.attest.endorsements import Endorsements
from veilrun.attest.pins import NVIDIA_SERVICE
from veilrun.errors import DecodeError
from veilrun.wire.fields import Fields, json_object, list_of, mapping

_MAX_BYTES: Final = 1 << 20
_MAX_CERTIFICATES: Final = 8


@dataclass(frozen=True)
class ServiceToken:
    """claims: about all devices. devices: `GPU-0` -> claims about it."""

    claims: Mapping[str, Any]
    devices: Mapping[str, Mapping[str, Any]]


def parse_token(data: bytes) -> ServiceToken:
    """The token in `data`; its signatures are not verified."""
    try:
        (kind, whole), devices = json.loads(_bounded(data))
    except (ValueError, TypeError, RecursionError) as error:
        raise DecodeError("token is not a list of a JWT and of devices") from error
    if kind != "JWT":
        raise DecodeError("token does not begin with a JWT")
    claims = _payload(whole, "token")
    digests = mapping(claims.get("submods"), "submods")
    parts = mapping(devices, "devices")
    if digests.keys() != parts.keys():
        raise DecodeError(f"token is about {len(digests)} devices, there are {len(parts)}")
    found = {}
    for name, part in parts.items():
        found[name] = _payload(part, name)
        if digests[name] != ["DIGEST", ["SHA-256", hashlib.sha256(part.encode()).hexdigest()]]:
            raise DecodeError(f"token has another digest of {name}")
    return ServiceToken(claims, found)


def parse_chain(data: bytes) -> tuple[x509.Certificate, ...]:
    """The certificates of `{"x5c": [...]}`, the signer's first."""
    fields = Fields(json_object(_bounded(data)), "chain")
    certificates = fields.take("x5c", list_of(_certificate))
    fields.finish()
    if not 1 <= len(certificates) <= _MAX_CERTIFICATES:
        raise DecodeError(f"chain of {len(certificates)} certificates")
    return tuple(certificates)


def verify_signer(
    signer: x509.Certificate, endorsements: Endorsements, at: datetime, check: str = "token signer"
) -> None:
    """`signer` leads to a pinned intermediate at the time. Raises AppraisalError."""
    verify_chain(signer, endorsements, NVIDIA_SERVICE, at, check)


def _bounded(data: bytes) -> bytes:
    if len(data) > _MAX_BYTES:
        raise DecodeError(f"{len(data)} bytes of the attestation service")
    return data


def _payload(token: Any, name: str) -> dict[str, Any]:
    parts = token.split(".") if isinstance(token, str) else []
    if len(parts) != 3:
        raise DecodeError(f"{name} is not a JWT")
    try:
        return json_object(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except ValueError as error:
        raise DecodeError(f"{name} is not base64") from error


def _certificate(value: Any, name: str) -> x509.Certificate:
    try:
        return x509.load_der_x509_certificate(base64.b64decode(value, validate=True))
    except (*MALFORMED, TypeError) as error:
        raise DecodeError(f"{name} is not a certificate") from error
