"""Certificate chains to a pinned root, at a given time, with revocation lists where given.

Steps of `verified_chain`:
1. Follow issuers by name and signature, through certificates that may sign others.
2. The chain ends at the first one whose SHA-256 is pinned (a root, where the vendor has one).
3. Every certificate is valid at the time.
4. No certificate is on a list of its issuer; the list is signed by the issuer and current.

Signatures are checked by `cryptography`. Web rules (names of hosts, key usage for servers) do not
apply to these hierarchies, so its web verifier is not used.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from datetime import datetime
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes

from veilrun.attest.endorsements import Endorsements
from veilrun.attest.pins import Pin
from veilrun.attest.reasons import AppraisalError, Reason

_LONGEST: Final = 8
_MALFORMED: Final = (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType)


def verify_chain(
    leaf: x509.Certificate,
    endorsements: Endorsements,
    pins: Sequence[Pin],
    at: datetime,
    check: str,
    *,
    needs_revocations: bool = False,
) -> None:
    """`leaf` leads to one of `pins`, see above. check: the step's name in errors.

    Raises:
        AppraisalError: chain, expired, not-yet-valid, revoked; no-endorsement if a list is
            missing and `needs_revocations`.
    """
    verified_chain(leaf, endorsements, pins, at, check, needs_revocations=needs_revocations)


def verified_chain(
    leaf: x509.Certificate,
    endorsements: Endorsements,
    pins: Sequence[Pin],
    at: datetime,
    check: str,
    *,
    needs_revocations: bool = False,
) -> list[x509.Certificate]:
    """The chain from `leaf` to a pin, verified; raises as `verify_chain`."""
    try:
        chain = _issuers(leaf, endorsements.certificates, pins, check)
    except _MALFORMED as error:  # names and extensions are decoded when they are first read
        raise AppraisalError(Reason.CHAIN, check, "a certificate is malformed") from error
    for one in chain:
        verify_validity(one.not_valid_before_utc, one.not_valid_after_utc, at, check, _name(one))
    for one, issuer in itertools.pairwise(chain):
        _verify_not_revoked(one, issuer, endorsements, at, check, needs=needs_revocations)
    return chain


def verify_validity(start: datetime, end: datetime, at: datetime, check: str, what: str) -> None:
    """`at` lies within. Raises AppraisalError (expired, not-yet-valid)."""
    if at < start:
        raise AppraisalError(
            Reason.NOT_YET_VALID, check, f"{what} is valid from {start}, the time is {at}"
        )
    if at > end:
        raise AppraisalError(Reason.EXPIRED, check, f"{what} was valid until {end}, it is {at}")


def _issuers(
    leaf: x509.Certificate,
    certificates: Sequence[x509.Certificate],
    pins: Sequence[Pin],
    check: str,
) -> list[x509.Certificate]:
    """The leaf, its issuer, and so on to one that is pinned."""
    chain, pinned = [leaf], {pin.sha256 for pin in pins}
    while (digest := chain[-1].fingerprint(hashes.SHA256()).hex()) not in pinned:
        if _signed_by(chain[-1], chain[-1]):
            names = ", ".join(pin.name for pin in pins)
            raise AppraisalError(
                Reason.CHAIN, check, f"ends at {_name(chain[-1])} ({digest}), which is not {names}"
            )
        if len(chain) == _LONGEST:
            raise AppraisalError(Reason.CHAIN, check, f"more than {_LONGEST} certificates")
        issuer = next(
            (one for one in certificates if _may_sign(one) and _signed_by(chain[-1], one)), None
        )
        if issuer is None:
            raise AppraisalError(
                Reason.CHAIN, check, f"no certificate at hand has signed {_name(chain[-1])}"
            )
        chain.append(issuer)
    return chain


def _signed_by(one: x509.Certificate, issuer: x509.Certificate) -> bool:
    if one.issuer != issuer.subject:
        return False
    try:
        one.verify_directly_issued_by(issuer)
    except (InvalidSignature, ValueError, TypeError, UnsupportedAlgorithm):
        return False
    return True


def _may_sign(one: x509.Certificate) -> bool:
    try:
        return one.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (x509.ExtensionNotFound, ValueError):
        return False


def _verify_not_revoked(
    one: x509.Certificate,
    issuer: x509.Certificate,
    endorsements: Endorsements,
    at: datetime,
    check: str,
    *,
    needs: bool,
) -> None:
    try:
        lists = [crl for crl in endorsements.revocations if crl.issuer == issuer.subject]
    except (*_MALFORMED, TypeError) as error:  # what a damaged name in a list gives
        raise AppraisalError(Reason.CHAIN, check, "a revocation list is malformed") from error
    if not lists and needs:
        raise AppraisalError(
            Reason.NO_ENDORSEMENT, check, f"no revocation list of {_name(issuer)} at hand"
        )
    for crl in lists:
        if not _list_signed(crl, issuer):
            raise AppraisalError(
                Reason.SIGNATURE, check, f"revocation list of {_name(issuer)} is not signed by it"
            )
        end = crl.next_update_utc or at
        verify_validity(crl.last_update_utc, end, at, check, f"revocation list of {_name(issuer)}")
        if crl.get_revoked_certificate_by_serial_number(one.serial_number) is not None:
            raise AppraisalError(Reason.REVOKED, check, f"{_name(one)} is revoked")


def _list_signed(crl: x509.CertificateRevocationList, issuer: x509.Certificate) -> bool:
    try:
        return crl.is_signature_valid(issuer.public_key())  # type: ignore[arg-type]  # raises
    except (TypeError, ValueError, UnsupportedAlgorithm):
        return False


def _name(one: x509.Certificate) -> str:
    return one.subject.rfc4514_string() or "a certificate without a name"
