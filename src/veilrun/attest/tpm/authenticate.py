"""Is a quote of a TPM, and are the registers what it says?

Steps of `authenticate`:
1. A key at hand has signed the quote (`keys`).
2. Who says that it is a TPM's: its certificate leads to a cloud's root at the time; or a TEE's
   evidence, authentic, is about the paravisor's runtime data that names it; or nobody, and the
   policy must name it.
3. The registers' values hash to what is quoted.
4. The event logs at hand, replayed, give the quoted registers.

Covered: which key signed which registers, over which nonce. Not covered: that the key is one that
signs nothing from outside the TPM: whoever certifies or names it vouches for that; and what
measures itself into registers without a log.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final

from veilrun.attest.certificates import key_sha256
from veilrun.attest.chains import verify_chain
from veilrun.attest.checks import CheckLog
from veilrun.attest.claims import Claims, Kind
from veilrun.attest.endorsements import Endorsements
from veilrun.attest.event_logs import EventLog, parse_event_log, verify_registers
from veilrun.attest.hcl import verify_runtime_data
from veilrun.attest.kinds import authenticate as authenticate_tee
from veilrun.attest.pins import TPM_CLOUDS
from veilrun.attest.reasons import AppraisalError, Reason
from veilrun.attest.tpm.evidence import Azure, TpmEvidence
from veilrun.attest.tpm.keys import Candidate, candidates
from veilrun.attest.tpm.quote import digest_of
from veilrun.errors import DecodeError

_KEY_STEP: Final = "attestation key"


def authenticate(
    evidence: TpmEvidence, endorsements: Endorsements, at: datetime, log: CheckLog
) -> Claims:
    """Steps as above.

    Raises:
        AppraisalError: no-endorsement, signature, chain, expired, not-yet-valid, revoked, digest,
            event-log; and what a TEE's evidence raises.
    """
    # 1. signature
    with log.step("quote signature"):
        signer = _signer(evidence, endorsements)
    identity = {"attestation_key": key_sha256(signer.key).hex()}
    nested: tuple[Claims, ...] = ()
    # 2. voucher
    if signer.certificate is not None:
        with log.step(_KEY_STEP, "its certificate leads to a cloud's root"):
            verify_chain(signer.certificate, endorsements, TPM_CLOUDS, at, _KEY_STEP)
        identity["vouched_by"] = "certificate"
    elif evidence.azure is not None:
        nested = (_tee(evidence.azure, endorsements, at, log),)
        identity["vouched_by"] = "tee"
    else:
        log.skip(_KEY_STEP, "nobody vouches for it: the policy must name it")
    # 3. values
    _verify_values(evidence, log)
    # 4. event logs
    _replay(evidence, endorsements, log)
    return Claims(
        Kind.TPM,
        measurements={f"pcr{n}": one.hex() for n, one in (evidence.values or {}).items()},
        versions={"firmware": evidence.quote.firmware},
        identity=identity,
        nonce=evidence.quote.nonce,
        nested=nested,
    )


def _signer(evidence: TpmEvidence, endorsements: Endorsements) -> Candidate:
    if evidence.signature is None:
        raise AppraisalError(Reason.SIGNATURE, "quote signature", "the quote is not signed")
    tried = 0
    try:
        for one in candidates(evidence, endorsements):
            tried += 1
            if evidence.signature.fits(one.key, evidence.quote.signed):
                return one
    except DecodeError as error:
        raise AppraisalError(Reason.SIGNATURE, "quote signature", str(error)) from error
    if not tried:
        detail = "no attestation key at hand: neither in the evidence nor in a certificate"
        raise AppraisalError(Reason.NO_ENDORSEMENT, "quote signature", detail)
    raise AppraisalError(
        Reason.SIGNATURE, "quote signature", f"none of the {tried} keys at hand has signed it"
    )


def _tee(azure: Azure, endorsements: Endorsements, at: datetime, log: CheckLog) -> Claims:
    """The TEE's own evidence, and that it is about the data that names the key."""
    at_hand = endorsements
    if azure.endorsement is not None:
        at_hand = at_hand + Endorsements((azure.endorsement,))
    claims = authenticate_tee(azure.tee, at_hand, at, log)
    with log.step(_KEY_STEP, "in the runtime data that the TEE's report is about"):
        verify_runtime_data(azure.report, claims.report_data or b"", _KEY_STEP)
    return claims


def _verify_values(evidence: TpmEvidence, log: CheckLog) -> None:
    quote, signature = evidence.quote, evidence.signature
    if evidence.values is None or signature is None:
        log.skip("registers", "the evidence has no values")
        return
    with log.step("registers", f"{len(quote.selected)} of {quote.bank}"):
        found = digest_of(evidence.values, quote.selected, signature.algorithm)
        if found != quote.digest:
            detail = f"they hash to {found.hex()}, quoted is {quote.digest[:64].hex()}"
            raise AppraisalError(Reason.DIGEST, "registers", detail)


def _replay(evidence: TpmEvidence, endorsements: Endorsements, log: CheckLog) -> None:
    if evidence.values is None or not endorsements.event_logs:
        log.skip("event log", "none at hand" if evidence.values else "no values to compare with")
        return
    with log.step("event log"):
        bank = evidence.quote.bank
        logs = [one for one in map(_parsed, endorsements.event_logs) if _is_ours(one, bank)]
        if not logs:
            raise AppraisalError(
                Reason.EVENT_LOG, "event log", f"none of those at hand is of a TPM with {bank}"
            )
        for one in logs:
            verify_registers(one, bank, evidence.values, "event log")


def _parsed(data: bytes) -> EventLog:
    try:
        return parse_event_log(data)
    except DecodeError as error:
        raise AppraisalError(Reason.EVENT_LOG, "event log", str(error)) from error


def _is_ours(log: EventLog, bank: str) -> bool:
    """Logs of TEEs may be at hand as well."""
    return not log.is_of_tee and bank in log.algorithms
