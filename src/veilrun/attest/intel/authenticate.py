"""Is a quote of genuine Intel hardware, and how recent is its firmware?

Steps of `authenticate`:
1. The PCK's certificate leads to Intel's root at the time; no list at hand revokes one of the
   chain.
2. The PCK has signed the report of the quoting enclave (ECDSA P-256, SHA-256).
3. That enclave is Intel's, and not in debug mode: anyone can have a PCK sign some enclave.
4. Its report data are the hash of its key.
5. That key has signed the quote.
6. Where Intel's collateral for the platform is at hand: signed, current, not revoked.
7. By that, the platform's grade (`grading`). Without it there is none, and the policy decides.
8. The event logs at hand, replayed, give the quoted registers (TDX).
9. What the quote came in, or is at hand beside it, says the same: an envelope's report data, the
   report of Azure's paravisor.

Covered: which enclave or domain, on which platform, of which grade. Not covered: quotes by others
than Intel's quoting enclaves; without collateral, how old the quoting enclave is and how a domain
is set up; measurements, age and, without collateral, debug mode: policy.
"""

from __future__ import annotations

from datetime import datetime
from hashlib import sha256
from typing import Final

from cryptography import x509

from veilrun.attest.certificates import common_name
from veilrun.attest.chains import verified_chain
from veilrun.attest.checks import CheckLog
from veilrun.attest.claims import Claims, Kind
from veilrun.attest.dstack import verify_stated
from veilrun.attest.endorsements import Endorsements
from veilrun.attest.intel.collateral import read_collateral
from veilrun.attest.intel.companions import compare_paravisors, replay_logs
from veilrun.attest.intel.evidence import IntelEvidence
from veilrun.attest.intel.grading import Platform, grade, is_graded, platform_of
from veilrun.attest.intel.keys import has_signed
from veilrun.attest.intel.parts import TCB, verified_parts
from veilrun.attest.intel.quotes import Quote
from veilrun.attest.intel.reports import TdReport
from veilrun.attest.pins import INTEL
from veilrun.attest.reasons import AppraisalError, Reason

_PCK: Final = "Intel SGX PCK Certificate"
_PCK_ISSUERS: Final = ("Intel SGX PCK Platform CA", "Intel SGX PCK Processor CA")
# MRSIGNER and product of the quoting enclaves, as Intel's service has them in their identities.
_QUOTING_ENCLAVES: Final = {
    Kind.INTEL_SGX: ("8c4f5775d796503e96137f77c68a829a0056ac8ded70140b081b094490c57bff", 1),
    Kind.INTEL_TDX: ("dc9e2a7c6f948f17474e34a7fc43ed030f7c1563f1babddf6340c82e0e54a8c5", 2),
}


def authenticate(
    evidence: IntelEvidence, endorsements: Endorsements, at: datetime, log: CheckLog
) -> Claims:
    """Steps as above. `tcb` is None without collateral.

    Raises:
        AppraisalError: chain, expired, not-yet-valid, revoked, signature, measurement,
            no-endorsement, tcb-level, debug, configuration, event-log, digest.
        DecodeError: collateral does not parse.
    """
    quote, report = evidence.quote, evidence.quote.report
    documents, carried = read_collateral(endorsements.collateral)
    at_hand = endorsements + carried + Endorsements(quote.certificates)
    with log.step("pck certificate"):
        # 1. chain
        chain, platform = _platform(quote, at_hand, at)
    # 2. to 5. signatures
    _verify_signatures(quote, chain[0], log)
    # 6. collateral
    tcb, versions = None, report.versions()
    if not is_graded(quote):
        log.skip(TCB, f"dcap-qvl does not grade SGX quotes of version {quote.version}")
    elif parts := verified_parts(quote.kind, platform.fmspc, chain, documents, at_hand, at, log):
        with log.step(TCB):
            # 7. grade
            tcb, versions["tcb_evaluation"] = grade(quote, parts, at, TCB)
    # 8. and 9. what lies beside it
    if isinstance(report, TdReport):
        replay_logs(report, evidence.log, endorsements, log)
        compare_paravisors(report, endorsements, log)
    if evidence.stated is not None:
        with log.step("stated report data"):
            verify_stated(evidence.stated, report.report_data, "stated report data")
    return Claims(
        quote.kind,
        measurements=report.measurements(),
        versions=versions,
        identity={"fmspc": platform.fmspc, "ppid": platform.ppid},
        report_data=report.report_data,
        debug=report.debug,
        tcb=tcb,
    )


def _platform(
    quote: Quote, at_hand: Endorsements, at: datetime
) -> tuple[list[x509.Certificate], Platform]:
    check = "pck certificate"
    chain = verified_chain(quote.certificates[0], at_hand, INTEL, at, check)
    names = [common_name(one) for one in chain]
    if len(chain) != 3 or names[0] != _PCK or names[1] not in _PCK_ISSUERS:
        raise AppraisalError(Reason.CHAIN, check, f"{' <- '.join(names)} is not that of a PCK")
    return chain, platform_of(chain[0], check)


def _verify_signatures(quote: Quote, pck: x509.Certificate, log: CheckLog) -> None:
    """Steps 2 to 5."""
    check = "report of the quoting enclave"
    with log.step(check):
        # 2. PCK
        if not has_signed(pck, quote.enclave_signature, quote.enclave_data):
            raise AppraisalError(Reason.SIGNATURE, check, "not by the PCK")
    check = "quoting enclave"
    with log.step(check):
        # 3. enclave
        enclave = quote.enclave
        found = (enclave.mr_signer.hex(), enclave.product)
        if found != _QUOTING_ENCLAVES[quote.kind] or enclave.debug:
            detail = f"of {found[0]}, product {found[1]}, is not Intel's, or in debug mode"
            raise AppraisalError(Reason.MEASUREMENT, check, detail)
    check = "quoting key"
    with log.step(check):
        # 4. its key
        digest = sha256(quote.key + quote.own_data).digest()
        if enclave.report_data != digest.ljust(len(enclave.report_data), b"\0"):
            raise AppraisalError(Reason.SIGNATURE, check, "the enclave's report has another hash")
    check = "quote signature"
    with log.step(check):
        # 5. quote
        if not has_signed(quote.key, quote.signature, quote.signed):
            raise AppraisalError(Reason.SIGNATURE, check, "not by the quoting key")
