"""Reference integrity manifests (RIM): what NVIDIA's firmware and drivers should measure as.

A SWID tag (XML) with an enveloped signature. `Meta` has product, edition and version; `Payload` has
a `Resource` for each index, `active` or not, with the accepted values `Hash0`, `Hash1`, ...

Steps of `verified_manifest`:
1. Parse: no document type, no entities, no network, at most 1 MiB.
2. The certificates in the signature lead to a pinned root at the time.
3. The first of them has signed the document (ECDSA P-384, SHA-384), by signxml.
4. Read what was signed, as signxml gives it back, and nothing else of the file.

Covered: altered content, another signer, wrappings of the signed part. Not covered: manifests of
the vendor's test mode have the same form, version and signer as others.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from lxml import etree
from signxml import DigestAlgorithm, SignatureConfiguration, SignatureMethod, XMLVerifier
from signxml.exceptions import InvalidDigest, InvalidSignature, SignXMLException

from veilrun.attest.certificates import MALFORMED
from veilrun.attest.chains import verify_chain
from veilrun.attest.endorsements import Endorsements
from veilrun.attest.nvidia.report import VBIOS_FORM
from veilrun.attest.pins import NVIDIA_MANIFESTS, Pin
from veilrun.attest.reasons import AppraisalError, Reason
from veilrun.errors import DecodeError

_MAX_BYTES: Final = 1 << 20
_MAX_CERTIFICATES: Final = 8
_MAX_RESOURCES: Final = 255
_SWID: Final = "{http://standards.iso.org/iso/19770/-2/2015/schema.xsd}"
_HASH: Final = "{http://www.w3.org/2001/04/xmlenc#sha384}Hash"
_CERTIFICATES: Final = "/".join(
    f"{{http://www.w3.org/2000/09/xmldsig#}}{name}"
    for name in ("Signature", "KeyInfo", "X509Data", "X509Certificate")
)
_VALUE_FORM: Final = re.compile(r"[0-9a-f]{96}")


@dataclass(frozen=True)
class Manifest:
    """product: the chip (`GH100`). version: of driver or VBIOS. references: index, from 0 ->
    accepted values as hex; active ones only.
    """

    product: str
    version: str
    references: Mapping[int, frozenset[str]]

    @property
    def role(self) -> str:
        """`vbios` or `driver`: the forms of their versions differ."""
        return "vbios" if VBIOS_FORM.fullmatch(self.version) else "driver"


def recognise_manifest(data: bytes) -> bool:
    """Whether `data` looks like a manifest."""
    return b"SoftwareIdentity" in data[:4096]


def parse_manifest(data: bytes) -> Manifest:
    """What a manifest says, not verified: enough to choose among several."""
    return _read(_document(data))


def verified_manifest(
    data: bytes,
    endorsements: Endorsements,
    at: datetime,
    check: str = "manifest",
    pins: Sequence[Pin] = NVIDIA_MANIFESTS,
) -> Manifest:
    """What a manifest says, verified as above.

    Raises:
        AppraisalError: chain, expired, not-yet-valid, revoked, signature, digest.
    """
    # 1. parse
    root = _document(data)
    certificates = _signers(root, check)
    # 2. chain
    verify_chain(certificates[0], endorsements + Endorsements(certificates), pins, at, check)
    # 3. signature
    signed = _signed(data, certificates[0], at, check)
    # 4. what was signed
    return _read(signed)


def _document(data: bytes) -> Any:
    # Other encodings than those that extend ASCII could hide a document type from this search.
    if len(data) > _MAX_BYTES or b"\0" in data or b"<!DOCTYPE" in data:
        raise DecodeError("manifest is too long, not text, or has a document type")
    try:
        return etree.fromstring(data, _parser())
    except etree.LxmlError as error:
        raise DecodeError("manifest is not XML") from error


def _parser() -> Any:
    return etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False)


def _signers(root: Any, check: str) -> tuple[x509.Certificate, ...]:
    texts = [one.text or "" for one in root.findall(_CERTIFICATES)]
    if not 1 <= len(texts) <= _MAX_CERTIFICATES:
        raise AppraisalError(Reason.CHAIN, check, f"manifest has {len(texts)} certificates")
    try:
        return tuple(x509.load_der_x509_certificate(base64.b64decode(text)) for text in texts)
    except MALFORMED as error:
        raise AppraisalError(Reason.CHAIN, check, "a certificate does not parse") from error


def _signed(data: bytes, signer: x509.Certificate, at: datetime, check: str) -> Any:
    """The signed document, as signxml gives it back."""
    expected = SignatureConfiguration(
        location="./",
        signature_methods=frozenset({SignatureMethod.ECDSA_SHA384}),
        digest_algorithms=frozenset({DigestAlgorithm.SHA384}),
        verification_time=at,
    )
    try:
        result = XMLVerifier().verify(
            data, x509_cert=signer, parser=_parser(), expect_config=expected
        )
    except InvalidDigest as error:
        raise AppraisalError(Reason.DIGEST, check, "signed content was altered") from error
    except InvalidSignature as error:
        raise AppraisalError(Reason.SIGNATURE, check, "not signed by its certificate") from error
    except (
        SignXMLException,
        etree.LxmlError,
        UnsupportedAlgorithm,
        ValueError,
        TypeError,
    ) as error:
        raise AppraisalError(Reason.SIGNATURE, check, "the signature does not parse") from error
    return result.signed_xml


def _read(root: Any) -> Manifest:
    meta, payload = _only(root, "Meta"), _only(root, "Payload")
    references: dict[int, frozenset[str]] = {}
    resources = payload.findall(f"{_SWID}Resource")
    if len(resources) > _MAX_RESOURCES:
        raise DecodeError(f"manifest has {len(resources)} resources")
    seen = set()
    for one in resources:
        index = one.get("index", "")
        if not re.fullmatch(r"[0-9]{1,3}", index) or int(index) in seen:
            raise DecodeError(f"manifest index {index[:8]!r} is no number or there twice")
        seen.add(int(index))
        if one.get("active") not in ("True", "False"):
            raise DecodeError(f"manifest index {index} is neither active nor not")
        if one.get("active") == "True":
            references[int(index)] = _values(one, index)
    return Manifest(meta.get("product", ""), meta.get("colloquialVersion", "").upper(), references)


def _only(root: Any, name: str) -> Any:
    found = (
        [] if root is None or root.tag != f"{_SWID}SoftwareIdentity" else root.findall(_SWID + name)
    )
    if len(found) != 1:
        raise DecodeError(f"manifest has {len(found)} of {name}")
    return found[0]


def _values(resource: Any, index: str) -> frozenset[str]:
    """The accepted values; their number is stated."""
    values = [value.lower() for name, value in resource.items() if name.startswith(_HASH)]
    if not values or str(len(values)) != resource.get("alternatives"):
        raise DecodeError(f"manifest index {index} has {len(values)} values")
    if not all(_VALUE_FORM.fullmatch(value) for value in values):
        raise DecodeError(f"manifest index {index} has a value that is not SHA-384")
    return frozenset(values)
