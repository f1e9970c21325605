"""Intel's collateral for one platform: chosen from what is at hand, and verified.

It takes the TCB info of the platform, the identity of the quoting enclave, the list of revoked
certificates of the PCK's issuer, and the root's. Where one is missing, there is no grade.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from cryptography import x509

from veilrun.attest.checks import CheckLog
from veilrun.attest.claims import Kind
from veilrun.attest.endorsements import Endorsements
from veilrun.attest.intel.collateral import Document, latest, verified_signers

TCB: Final = "tcb level"
"""The step that is skipped without collateral."""

_DOCUMENTS: Final = {Kind.INTEL_SGX: ("SGX", "QE"), Kind.INTEL_TDX: ("TDX", "TD_QE")}


@dataclass(frozen=True, eq=False)
class Parts:
    """Verified collateral of one platform. Chains begin with the certificate that signs.

    pck_issuers: from the PCK's issuer to the root. pck_list, root_list: of revoked certificates.
    """

    tcb_info: Document
    tcb_signers: Sequence[x509.Certificate]
    identity: Document
    identity_signers: Sequence[x509.Certificate]
    pck_issuers: Sequence[x509.Certificate]
    pck_list: x509.CertificateRevocationList
    root_list: x509.CertificateRevocationList


def verified_parts(
    kind: Kind,
    fmspc: str,
    chain: Sequence[x509.Certificate],
    documents: Sequence[Document],
    at_hand: Endorsements,
    at: datetime,
    log: CheckLog,
) -> Parts | None:
    """The collateral for the platform whose PCK has this chain, verified before; None without.

    Raises:
        AppraisalError: no-endorsement, signature, chain, expired, not-yet-valid, revoked.
    """
    info_id, enclave_id = _DOCUMENTS[kind]
    tcb_info = latest(documents, info_id, fmspc, at)
    identity = latest(documents, enclave_id, "", at)
    pck_list, root_list = _list_of(chain[1], at_hand), _list_of(chain[-1], at_hand)
    if tcb_info is None or identity is None or pck_list is None or root_list is None:
        wanted = {
            f"TCB info {info_id} of platform {fmspc}": tcb_info,
            f"identity {enclave_id}": identity,
            "revocation list of the PCK's issuer": pck_list,
            "revocation list of the root": root_list,
        }
        missing = ", ".join(name for name, found in wanted.items() if found is None)
        log.skip(TCB, f"not at hand: {missing}")
        return None
    with log.step("tcb info"):
        tcb_signers = verified_signers(tcb_info, at_hand, at, "tcb info")
    with log.step("identity of the quoting enclave"):
        identity_signers = verified_signers(
            identity, at_hand, at, "identity of the quoting enclave"
        )
    return Parts(tcb_info, tcb_signers, identity, identity_signers, chain[1:], pck_list, root_list)


def _list_of(
    issuer: x509.Certificate, at_hand: Endorsements
) -> x509.CertificateRevocationList | None:
    """The newest one; all of them were verified with the chain."""
    lists = [one for one in at_hand.revocations if one.issuer == issuer.subject]
    return max(lists, key=lambda one: one.last_update_utc, default=None)
