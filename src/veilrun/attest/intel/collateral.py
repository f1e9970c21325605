"""Intel's collateral: what is known of platforms and of quoting enclaves, signed for 30 days.

    as Intel's service answers    {"tcbInfo": {...}, "signature": hex}
                                  {"enclaveIdentity": {...}, "signature": hex}
    as dcap-qvl writes it         {"tcb_info": text, "tcb_info_signature": hex,
                                   "tcb_info_issuer_chain": PEM, "qe_identity": the same three,
                                   "root_ca_crl": hex, "pck_crl": hex, "pck_crl_issuer_chain": PEM}

A signature is over the bytes of the object, exactly as they were written. Here documents are read
and chosen, and their signatures and times verified.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from cryptography import x509

from veilrun.attest.certificates import common_name, read_der, read_pem
from veilrun.attest.chains import verified_chain, verify_validity
from veilrun.attest.endorsements import Endorsements, joined
from veilrun.attest.intel.keys import has_signed
from veilrun.attest.pins import INTEL
from veilrun.attest.reasons import AppraisalError, Reason
from veilrun.errors import DecodeError
from veilrun.wire.fields import Fields, json_object, mapping, short_text

_MAX_BYTES: Final = 1 << 20
_MAX_FILES: Final = 64
_MAX_CERTIFICATES: Final = 128
_SIGNER: Final = "Intel SGX TCB Signing"
_SERVICE_KEYS: Final = re.compile(r'"(?:tcbInfo|enclaveIdentity)"\s*:\s*')
_CHAINS: Final = ("tcb_info_issuer_chain", "qe_identity_issuer_chain", "pck_crl_issuer_chain")


@dataclass(frozen=True, eq=False)
class Document:
    """TCB info of a platform (id SGX or TDX), or a quoting enclave's identity (QE or TD_QE).

    text: as signed. fmspc: of the platform, lower case; empty for an enclave's identity.
    """

    text: str
    signature: bytes
    id: str
    fmspc: str
    issued: datetime
    until: datetime
    body: Mapping[str, Any]


def read_collateral(texts: Sequence[bytes]) -> tuple[tuple[Document, ...], Endorsements]:
    """All documents in these JSON texts; the certificates and lists that came with them."""
    if len(texts) > _MAX_FILES:
        raise DecodeError(f"{len(texts)} files of collateral, {_MAX_FILES} at most")
    documents: list[Document] = []
    carried: list[Endorsements] = []
    for data in texts:
        if len(data) > _MAX_BYTES:
            raise DecodeError(f"collateral of {len(data)} bytes is over {_MAX_BYTES}")
        fields = Fields(json_object(data), "collateral")
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise DecodeError("collateral is not UTF-8") from error
        found = _SERVICE_KEYS.search(text)
        if found is None:
            documents.append(_document(fields, "tcb_info"))
            documents.append(_document(fields, "qe_identity"))
            carried.append(_carried(fields))
        else:
            # Its bytes count: they are cut out of the text, not written anew.
            _, end = json.JSONDecoder().raw_decode(text, found.end())
            signature = fields.take("signature", _hex)
            documents.append(_parsed(text[found.end() : end], signature))
    total = joined(carried)
    # Each file has the same few again. Every one costs signatures, when issuers are looked for.
    certificates = tuple(dict.fromkeys(total.certificates))
    if max(len(certificates), len(total.revocations)) > _MAX_CERTIFICATES:
        raise DecodeError(f"collateral with over {_MAX_CERTIFICATES} certificates or lists")
    return tuple(documents), Endorsements(certificates, total.revocations)


def latest(documents: Iterable[Document], name: str, fmspc: str, at: datetime) -> Document | None:
    """The newest document with this id and platform that is not from the future, if any is."""
    wanted = [one for one in documents if (one.id, one.fmspc) == (name, fmspc)]
    return max(wanted, key=lambda one: (one.issued <= at, one.issued), default=None)


def verified_signers(
    document: Document, at_hand: Endorsements, at: datetime, check: str
) -> list[x509.Certificate]:
    """The chain of the certificate that has signed the document, which is valid at the time.

    Raises:
        AppraisalError: no-endorsement, signature, chain, expired, not-yet-valid, revoked.
    """
    signers = [one for one in at_hand.certificates if common_name(one) == _SIGNER]
    if not signers:
        raise AppraisalError(Reason.NO_ENDORSEMENT, check, f"no certificate of {_SIGNER} at hand")
    signed = document.text.encode()
    signer = next((one for one in signers if has_signed(one, document.signature, signed)), None)
    if signer is None:
        raise AppraisalError(Reason.SIGNATURE, check, f"{_SIGNER} has not signed this")
    verify_validity(document.issued, document.until, at, check, f"collateral {document.id}")
    return verified_chain(signer, at_hand, INTEL, at, check, needs_revocations=True)


def _document(fields: Fields, name: str) -> Document:
    text = fields.take(name, _text)
    return _parsed(text, fields.take(f"{name}_signature", _hex))


def _parsed(text: str, signature: bytes) -> Document:
    body = json_object(text.encode())
    fields = Fields(body, "collateral")
    name = fields.take("id", short_text)
    fmspc = "" if name.endswith("QE") else fields.take("fmspc", short_text).lower()
    issued, until = fields.take("issueDate", date), fields.take("nextUpdate", date)
    return Document(text, signature, name, fmspc, issued, until, body)


def _carried(fields: Fields) -> Endorsements:
    chains = [read_pem(fields.take(name, _text).encode()) for name in _CHAINS]
    lists = [read_der(fields.take(name, _hex)) for name in ("root_ca_crl", "pck_crl")]
    return joined((*chains, *lists))


def date(value: Any, name: str) -> datetime:
    """A time as collateral writes it: `2025-06-19T10:16:03Z`."""
    try:
        found = datetime.fromisoformat(short_text(value, name))
    except ValueError as error:
        raise DecodeError(f"{name} is no time", field=name) from error
    if found.tzinfo is None:
        raise DecodeError(f"{name} has no time zone", field=name)
    return found


def level_dates(body: Mapping[str, Any], name: str) -> list[datetime]:
    """When each level of TCB was current: `tcbDate` of the `tcbLevels`."""
    levels = body.get("tcbLevels")
    if not isinstance(levels, list):
        raise DecodeError(f"{name} has no levels")
    return [date(mapping(one, name).get("tcbDate"), f"{name}.tcbDate") for one in levels]


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str) or not value.isascii():
        raise DecodeError(f"{name} must be text in ASCII", field=name)
    return value


def _hex(value: Any, name: str) -> bytes:
    try:
        return bytes.fromhex(_text(value, name))
    except ValueError as error:
        raise DecodeError(f"{name} is not hex", field=name) from error
