"""Which kind of endorsement a file is, by its content.

    PEM                     certificates and revocation lists, any number
    DER                     one of either
    XML                     a SWID tag: NVIDIA's reference manifest
    JSON                    Intel's collateral: all of it as dcap-qvl writes it (`tcb_info`, ...),
                            or a part as Intel's service answers (`tcbInfo`, `enclaveIdentity`)
    TCG event log           begins with an event whose data is `Spec ID Event03`
    paravisor's report      Azure's (`hcl`), of a TDX guest: it belongs to a quote. One of an SNP
                            guest is evidence by itself

Here it is read, not verified.
"""

from __future__ import annotations

import json
from typing import Final

from veilrun.attest.certificates import is_der, is_pem, read_der, read_pem
from veilrun.attest.endorsements import Endorsements
from veilrun.attest.hcl import is_of_tdx
from veilrun.attest.kinds import optional_module
from veilrun.errors import DecodeError

_COLLATERAL_KEYS: Final = ({"tcb_info", "qe_identity"}, {"tcbInfo"}, {"enclaveIdentity"})
# The first event: register (4 bytes), type (4), SHA-1 (20), size (4), then its data.
_LOG_SIGNATURE: Final = b"Spec ID Event03\0"
_LOG_SIGNATURE_AT: Final = 32
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"


def read_endorsements(data: bytes) -> Endorsements | None:
    """What vendors say in `data`; None for what has none of the forms above.

    Raises:
        DecodeError: one of these forms, and malformed.
        UsageError: a library is missing.
    """
    if data[_LOG_SIGNATURE_AT:].startswith(_LOG_SIGNATURE):
        return Endorsements(event_logs=(data,))
    if is_of_tdx(data):
        return Endorsements(paravisors=(data,))
    if is_der(data):
        return read_der(data)
    text = data.removeprefix(_BYTE_ORDER_MARK).lstrip()
    if text.startswith(b"<"):
        return _manifest(data)
    if text.startswith(b"{"):
        return Endorsements(collateral=(data,)) if _is_collateral(data) else None
    return read_pem(data) if is_pem(data) else None


def _manifest(data: bytes) -> Endorsements:
    if not optional_module("nvidia.manifest").recognise_manifest(data):
        raise DecodeError("XML is no reference manifest")
    return Endorsements(manifests=(data,))


def _is_collateral(data: bytes) -> bool:
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        return False
    return isinstance(content, dict) and any(keys <= content.keys() for keys in _COLLATERAL_KEYS)
