"""What vendors say about their machines: certificates, revocation lists, collateral, manifests.

All of it comes from files, never from a network, and none of it is trusted for being there: every
certificate must lead to a pinned root, every signed document to such a certificate.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from cryptography import x509


@dataclass(frozen=True, eq=False)
class Endorsements:
    """certificates: any order, roots among them. revocations: lists. collateral: Intel's, as
    JSON texts. manifests: NVIDIA's reference integrity manifests, as XML. Of the machine itself,
    beside its evidence: event_logs, as bytes; paravisors, reports of Azure's on TDX.
    """

    certificates: tuple[x509.Certificate, ...] = ()
    revocations: tuple[x509.CertificateRevocationList, ...] = ()
    collateral: tuple[bytes, ...] = ()
    manifests: tuple[bytes, ...] = ()
    event_logs: tuple[bytes, ...] = ()
    paravisors: tuple[bytes, ...] = ()

    def __add__(self, other: Endorsements) -> Endorsements:
        return Endorsements(
            self.certificates + other.certificates,
            self.revocations + other.revocations,
            self.collateral + other.collateral,
            self.manifests + other.manifests,
            self.event_logs + other.event_logs,
            self.paravisors + other.paravisors,
        )


def joined(parts: Iterable[Endorsements]) -> Endorsements:
    """All of them together."""
    total = Endorsements()
    for part in parts:
        total = total + part
    return total
