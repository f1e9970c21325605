"""Is a report of a genuine AMD processor, on the firmware that it reports?

Steps of `authenticate`:
1. A certificate of the key that the report names (VCEK or VLEK) leads to AMD's root for a product
   at the time, by that product's issuer of such keys; no list at hand revokes one of the chain.
2. That key has signed the report (ECDSA P-384, SHA-384). Where several are at hand, it is the one
   that has.
3. The report's processor is that product, where the report says.
4. The reported firmware versions are those in the certificate.
5. The chip is the one in the certificate; with a VLEK, the certificate names the cloud instead.
6. The guest's policy is one that exists: no reserved bit is set.
7. What the report came in says the same: a paravisor's runtime data, an envelope's report data.

Covered: which guest was measured, on which chip and firmware. Not covered: whether that firmware
is recent enough, debug mode, the privilege level: policy.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final

from cryptography import x509

from veilrun.attest.amd.endorsement_key import chip_id, cloud, has_version
from veilrun.attest.amd.evidence import SnpEvidence
from veilrun.attest.amd.processors import Product, product_of
from veilrun.attest.amd.report import SnpReport
from veilrun.attest.certificates import common_name
from veilrun.attest.chains import verified_chain
from veilrun.attest.checks import CheckLog
from veilrun.attest.claims import Claims, Kind
from veilrun.attest.dstack import verify_stated
from veilrun.attest.endorsements import Endorsements
from veilrun.attest.hcl import verify_runtime_data
from veilrun.attest.pins import AMD
from veilrun.attest.reasons import AppraisalError, Reason
from veilrun.attest.signatures import is_signed_by
from veilrun.errors import DecodeError

_ISSUERS: Final = {"VCEK": "SEV-{}", "VLEK": "SEV-VLEK-{}"}
_POLICY_ALWAYS: Final = 1 << 17
_POLICY_BITS: Final = 26
_MAX_KEYS: Final = 64


def authenticate(
    evidence: SnpEvidence, endorsements: Endorsements, at: datetime, log: CheckLog
) -> Claims:
    """Steps as above. AMD does not grade firmware: `tcb` is None, `versions` has its parts.

    Raises:
        AppraisalError: no-endorsement, chain, expired, not-yet-valid, revoked, signature,
            tcb-level, configuration, digest.
    """
    report, at_hand = evidence.report, endorsements + evidence.carried
    with log.step("endorsement key"):
        # 1. chain
        leaf, product = _endorsement_key(report, at_hand, at)
    with log.step("report signature"):
        # 2. signature
        _verify_signature(report, leaf)
    with log.step("processor"):
        # 3. product
        _verify_processor(report, product)
    with log.step("tcb of the endorsement key"):
        # 4. firmware
        versions = _reported_versions(report, leaf, product)
    with log.step("chip"):
        # 5. chip or cloud
        identity = _identity(report, leaf)
    with log.step("guest policy"):
        # 6. policy
        _verify_policy(report.policy)
    # 7. what it came in
    if evidence.runtime is not None:
        with log.step("runtime data"):
            verify_runtime_data(evidence.runtime, report.report_data, "runtime data")
    if evidence.stated is not None:
        with log.step("stated report data"):
            verify_stated(evidence.stated, report.report_data, "stated report data")
    return Claims(
        Kind.AMD_SEV_SNP,
        measurements=report.measurements(),
        versions=versions | {"guest_svn": str(report.guest_svn), "firmware": report.firmware},
        identity={"product": product.name, **identity, "report_id": report.report_id.hex()},
        report_data=report.report_data,
        debug=report.debug,
    )


def _endorsement_key(
    report: SnpReport, at_hand: Endorsements, at: datetime
) -> tuple[x509.Certificate, Product]:
    check, wanted = "endorsement key", f"SEV-{report.signer}"
    keys = [one for one in at_hand.certificates if common_name(one) == wanted]
    if not keys or len(keys) > _MAX_KEYS:
        raise AppraisalError(
            Reason.NO_ENDORSEMENT, check, f"{len(keys)} certificates of a {wanted} at hand"
        )
    leaf = next((one for one in keys if _has_signed(one, report)), keys[0])
    chain = verified_chain(leaf, at_hand, AMD, at, check)
    product = product_of(chain[-1])
    issuer = _ISSUERS[report.signer].format(product.name)
    if len(chain) != 3 or common_name(chain[1]) != issuer:
        names = " <- ".join(common_name(one) for one in chain)
        raise AppraisalError(Reason.CHAIN, check, f"{names}: the issuer must be {issuer}")
    return leaf, product


def _verify_signature(report: SnpReport, leaf: x509.Certificate) -> None:
    check = "report signature"
    if report.chip_key_masked:
        raise AppraisalError(Reason.SIGNATURE, check, "the chip's key is masked: it does not sign")
    if not _has_signed(leaf, report):
        raise AppraisalError(Reason.SIGNATURE, check, f"not by the {report.signer} at hand")


def _has_signed(key: x509.Certificate, report: SnpReport) -> bool:
    return is_signed_by(key, *report.signature, report.signed)


def _verify_processor(report: SnpReport, product: Product) -> None:
    if report.processor is not None and not product.includes(report.processor):
        family, model = report.processor
        raise AppraisalError(
            Reason.CHAIN,
            "processor",
            f"family {family:#x} model {model:#x} is not {product.name}, whose root it leads to",
        )


def _reported_versions(
    report: SnpReport, leaf: x509.Certificate, product: Product
) -> dict[str, str]:
    check = "tcb of the endorsement key"
    try:
        versions = product.versions(report.reported_tcb)
    except DecodeError as error:
        raise AppraisalError(Reason.TCB_LEVEL, check, str(error)) from error
    wrong = [name for name, value in versions.items() if not has_version(leaf, name, value)]
    if wrong:
        raise AppraisalError(
            Reason.TCB_LEVEL,
            check,
            f"the certificate is for other versions of {', '.join(wrong)} than {versions}",
        )
    return {name: str(value) for name, value in versions.items()}


def _identity(report: SnpReport, leaf: x509.Certificate) -> dict[str, str]:
    chip = {"chip_id": report.chip_id.hex()} if any(report.chip_id) else {}
    if report.signer == "VLEK":
        name = cloud(leaf)
        if name is None or chip_id(leaf) is not None:
            raise AppraisalError(Reason.CHAIN, "chip", "the VLEK's certificate names no cloud")
        return {"csp_id": name, **chip}
    if not chip or chip_id(leaf) != report.chip_id:
        raise AppraisalError(
            Reason.CHAIN,
            "chip",
            f"the report is of {report.chip_id.hex()}, the certificate of "
            + (chip_id(leaf) or b"").hex(),
        )
    return chip


def _verify_policy(policy: int) -> None:
    if not policy & _POLICY_ALWAYS or policy >> _POLICY_BITS:
        raise AppraisalError(
            Reason.CONFIGURATION, "guest policy", f"{policy:#x} has reserved bits otherwise"
        )
