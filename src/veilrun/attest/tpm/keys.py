"""Which key has signed a quote, and who says that it is a TPM's.

Candidates, in this order: keys of certificates at hand that are for attestation keys; the key in
the evidence, or `HCLAkPub` of the paravisor's runtime data.

A certificate is for attestation keys if it is no authority's, may sign, and names the extended key
usage 2.23.133.8.3 or none: Azure's name it, Google's have no extended usage at all.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes

from veilrun.attest.endorsements import Endorsements
from veilrun.attest.tpm.evidence import TpmEvidence
from veilrun.errors import DecodeError
from veilrun.wire.fields import json_object

_ATTESTATION_KEY_USE: Final = x509.ObjectIdentifier("2.23.133.8.3")
_AZURE_KEY: Final = "HCLAkPub"
_BASE64URL: Final = re.compile(r"[A-Za-z0-9_-]{1,1024}")
_MALFORMED: Final = (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType)


@dataclass(frozen=True, eq=False)
class Candidate:
    """A key. certificate: the one that names it, if any."""

    key: PublicKeyTypes
    certificate: x509.Certificate | None = None


def candidates(evidence: TpmEvidence, endorsements: Endorsements) -> Iterator[Candidate]:
    """All keys that may have signed, see above."""
    for one in endorsements.certificates:
        key = _certified_key(one)
        if key is not None:
            yield Candidate(key, one)
    if evidence.key is not None:
        yield Candidate(evidence.key)
    elif evidence.azure is not None:
        yield Candidate(azure_key(evidence.azure.report.runtime_data))


def azure_key(runtime_data: bytes) -> PublicKeyTypes:
    """The virtual TPM's key in a paravisor's runtime data. Raises DecodeError."""
    keys = json_object(runtime_data).get("keys")
    named = [one for one in keys if _is_named(one)] if isinstance(keys, list) else []
    if len(named) != 1 or named[0].get("kty") != "RSA":
        raise DecodeError(f"the paravisor names {len(named)} RSA keys {_AZURE_KEY}, not one")
    try:
        return rsa.RSAPublicNumbers(_number(named[0], "e"), _number(named[0], "n")).public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise DecodeError(f"the paravisor's {_AZURE_KEY} is no RSA key") from error


def _is_named(one: Any) -> bool:
    return isinstance(one, dict) and one.get("kid") == _AZURE_KEY


def _number(key: dict[str, Any], name: str) -> int:
    text = key.get(name)
    if not isinstance(text, str) or not _BASE64URL.fullmatch(text):
        raise DecodeError(f"{_AZURE_KEY}.{name} is not base64url")
    return int.from_bytes(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)), "big")


def _certified_key(one: x509.Certificate) -> PublicKeyTypes | None:
    """The key of a certificate that is for attestation keys."""
    try:
        extensions = one.extensions
        if not extensions.get_extension_for_class(x509.KeyUsage).value.digital_signature:
            return None
        for constraints in _values(extensions, x509.BasicConstraints):
            if constraints.ca:
                return None
        for uses in _values(extensions, x509.ExtendedKeyUsage):
            if _ATTESTATION_KEY_USE not in uses:
                return None
        return one.public_key()
    except (*_MALFORMED, x509.ExtensionNotFound, UnsupportedAlgorithm):
        return None


def _values(extensions: x509.Extensions, kind: type[Any]) -> Iterator[Any]:
    return (one.value for one in extensions if isinstance(one.value, kind))
