"""Is a document of a genuine Nitro Security Module, and what does it say of the enclave?

Steps of `authenticate`:
1. The module's certificate leads to AWS's root at the time, by its bundle. It lives for 3 hours.
2. Its key has signed the document (ES384).
3. An envelope around the document, if there is one, states the same report data.

Debug mode shows as registers 0 to 2 being zero, which no measurement is.

Covered: which enclave was measured, when and where. Not covered: debug mode, age, nonce: policy.
AWS publishes no revocation lists for these certificates.
"""

from __future__ import annotations

import hashlib
from datetime import datetime

from veilrun.attest.chains import verify_chain
from veilrun.attest.checks import CheckLog
from veilrun.attest.claims import Claims, Kind
from veilrun.attest.dstack import verify_stated
from veilrun.attest.endorsements import Endorsements
from veilrun.attest.nitro.document import NitroDocument
from veilrun.attest.pins import AWS_NITRO
from veilrun.attest.reasons import AppraisalError, Reason
from veilrun.attest.signatures import is_signed_by


def authenticate(
    document: NitroDocument, endorsements: Endorsements, at: datetime, log: CheckLog
) -> Claims:
    """Steps as above. `report_data` is the document's `user_data`; an empty nonce is none.

    Raises:
        AppraisalError: chain, expired, not-yet-valid, revoked, signature, digest.
    """
    with log.step("module certificate"):
        # 1. chain
        at_hand = endorsements + Endorsements(document.bundle)
        verify_chain(document.certificate, at_hand, AWS_NITRO, at, "module certificate")
    with log.step("document signature"):
        # 2. signature
        _verify_signature(document)
    if document.stated is not None:
        with log.step("stated report data"):
            # 3. envelope
            verify_stated(document.stated, document.user_data, "stated report data")
    return Claims(
        Kind.AWS_NITRO,
        measurements={f"pcr{index}": value.hex() for index, value in document.pcrs.items()},
        identity=_identity(document),
        nonce=document.nonce or None,
        report_data=document.user_data,
        made_at=document.made_at,
        debug=not all(any(document.pcrs[index]) for index in (0, 1, 2)),
    )


def _verify_signature(document: NitroDocument) -> None:
    if not is_signed_by(document.certificate, *document.signature, document.signed):
        raise AppraisalError(
            Reason.SIGNATURE, "document signature", "not by the module's certificate"
        )


def _identity(document: NitroDocument) -> dict[str, str]:
    """The module, and the SHA-256 of the key that the enclave wants answers under, if any."""
    identity = {"module_id": document.module_id}
    if document.public_key is not None:
        identity["public_key_sha256"] = hashlib.sha256(document.public_key).hexdigest()
    return identity
