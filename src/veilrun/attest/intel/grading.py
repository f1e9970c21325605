"""How recent a platform's firmware is, in Intel's words: by dcap-qvl, from verified collateral.

Steps of `grade`, all of which the library makes, the signatures and chains once more:
1. The quoting enclave is one that its identity describes.
2. The first level of TCB that the platform reaches in all components; the TDX module's; the
   quoting enclave's. The status is the worst of them.
3. The report is not in debug mode, has no reserved bit set, and a TD stops on broken pages
   (SEPT_VE_DISABLE).

`Tcb.dated`: since when there is a newer level than the one that is out of date: the platform's,
the TDX module's or the quoting enclave's.

Not covered: SGX quotes of version 4 and 5, which the library refuses.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import dcap_qvl
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from veilrun.attest.claims import Kind, Tcb
from veilrun.attest.intel.collateral import date, level_dates
from veilrun.attest.intel.parts import Parts
from veilrun.attest.intel.quotes import Quote
from veilrun.attest.intel.reports import TdReport
from veilrun.attest.reasons import AppraisalError, Reason
from veilrun.errors import DecodeError

_OUT_OF_DATE: Final = "OutOfDate"
_REVOKED: Final = "Revoked"
# What the library says, in the order in which it is looked for. Anything else: chain.
_REFUSALS: Final = (
    ("No matching TCB level", Reason.TCB_LEVEL),
    ("TCB level check", Reason.TCB_LEVEL),
    ("below minimum required", Reason.TCB_LEVEL),
    ("TCB status is invalid: Revoked", Reason.REVOKED),
    ("Debug mode is enabled", Reason.DEBUG),
    ("SEPT_VE_DISABLE", Reason.CONFIGURATION),
    ("is enabled", Reason.CONFIGURATION),
    ("Reserved bits", Reason.CONFIGURATION),
    ("Invalid MR service TD", Reason.CONFIGURATION),
    ("module identity", Reason.MEASUREMENT),
    ("QE report validation", Reason.MEASUREMENT),
    ("mismatch at byte", Reason.MEASUREMENT),
    ("MISCSELECT mismatch", Reason.MEASUREMENT),
    ("is in the future", Reason.NOT_YET_VALID),
    ("expired", Reason.EXPIRED),
    ("ignature is invalid", Reason.SIGNATURE),
    ("hash mismatch", Reason.SIGNATURE),
)


@dataclass(frozen=True, slots=True)
class Platform:
    """What a PCK certificate says of the machine, as hex."""

    fmspc: str
    ppid: str


def platform_of(pck: x509.Certificate, check: str) -> Platform:
    """The machine that a PCK certificate is for.

    Raises:
        AppraisalError: chain, it is for none.
    """
    try:
        extension = dcap_qvl.parse_pck_extension_from_pem(pck.public_bytes(Encoding.PEM))
    except ValueError as error:
        raise AppraisalError(Reason.CHAIN, check, "it is no certificate of a PCK") from error
    return Platform(extension.fmspc.hex(), extension.ppid.hex())


def is_graded(quote: Quote) -> bool:
    """Whether the library grades such quotes."""
    return quote.kind is Kind.INTEL_TDX or quote.version == 3


def grade(quote: Quote, parts: Parts, at: datetime, check: str) -> tuple[Tcb, str]:
    """The platform's grade; the number of the evaluation that it rests on.

    Raises:
        AppraisalError: tcb-level, revoked, debug, configuration, measurement; or, should the
            library see more than the steps before, expired, not-yet-valid, signature, chain.
    """
    now_s = int(at.timestamp())
    root = parts.pck_issuers[-1].public_bytes(Encoding.DER)
    try:
        claims = dcap_qvl.QuoteVerifier(root).verify_with_policy(
            quote.data, _collateral(parts), now_s, dcap_qvl.QuotePolicy.claims_only(now_s)
        )
        content = json.loads(claims.to_json())
    except (ValueError, OverflowError) as error:
        raise AppraisalError(_reason(str(error)), check, f"dcap-qvl: {error}") from error
    verdict = content["tcb"]
    if verdict["status"] == _REVOKED:
        raise AppraisalError(Reason.REVOKED, check, "this level of TCB is revoked")
    try:
        dated = _out_of_date_since(content, quote, parts)
    except DecodeError as error:
        raise AppraisalError(Reason.TCB_LEVEL, check, str(error)) from error
    tcb = Tcb(verdict["status"], tuple(verdict["advisory_ids"]), dated)
    return tcb, str(verdict["eval_data_number"])


def _collateral(parts: Parts) -> Any:
    tcb_info, identity = parts.tcb_info, parts.identity
    return dcap_qvl.QuoteCollateralV3(
        pck_crl_issuer_chain=_pem(parts.pck_issuers),
        root_ca_crl=parts.root_list.public_bytes(Encoding.DER),
        pck_crl=parts.pck_list.public_bytes(Encoding.DER),
        tcb_info_issuer_chain=_pem(parts.tcb_signers),
        tcb_info=tcb_info.text,
        tcb_info_signature=tcb_info.signature,
        qe_identity_issuer_chain=_pem(parts.identity_signers),
        qe_identity=identity.text,
        qe_identity_signature=identity.signature,
    )


def _out_of_date_since(content: dict[str, Any], quote: Quote, parts: Parts) -> datetime | None:
    """The earliest date of a newer level than one that was reached and is out of date."""
    reached = [
        (content["platform"]["tcb_level"], parts.tcb_info.body),
        (content["qe"]["tcb_level"], parts.identity.body),
        *_module_level(quote, parts),
    ]
    since: list[datetime] = []
    for level, body in reached:
        if level["tcbStatus"].startswith(_OUT_OF_DATE):
            then = date(level["tcbDate"], "tcbDate")
            since += [one for one in level_dates(body, "levels") if one > then]
    return min(since, default=None)


def _module_level(quote: Quote, parts: Parts) -> Iterator[tuple[Mapping[str, Any], Any]]:
    """The TDX module's level; of modules before 1.5, which have none of their own, nothing."""
    if not isinstance(quote.report, TdReport):
        return
    version, major = quote.report.seam["tee_tcb_svn"][:2]
    for module in parts.tcb_info.body.get("tdxModuleIdentities", ()):
        levels = module["tcbLevels"] if module["id"] == f"TDX_{major:02X}" else ()
        level = next((one for one in levels if one["tcb"]["isvsvn"] <= version), None)
        if level is not None:
            yield level, module


def _reason(text: str) -> Reason:
    return next((reason for part, reason in _REFUSALS if part in text), Reason.CHAIN)


def _pem(chain: Sequence[x509.Certificate]) -> str:
    return b"".join(one.public_bytes(Encoding.PEM) for one in chain).decode("ascii")
