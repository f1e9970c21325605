"""A verdict as an EAT Attestation Result (EAR, draft-ietf-rats-ear-04), in JSON, not signed.

One submodule for each piece of evidence, and `machine` for checks about all together. What the
evidence claims is in `ear_attester_claims`; every check with outcome and reason is in
`ear_verifier_claims`.
"""

from __future__ import annotations

import base64
import json
from typing import Any, Final

from veilrun.attest.checks import Check
from veilrun.attest.claims import Claims
from veilrun.attest.verdict import Appraisal, Verdict

PROFILE: Final = "tag:ietf.org,2026:rats/ear#04"


def encode_ear(verdict: Verdict, build: str) -> bytes:
    """The JSON of a verdict. build: which verifier, like `veilrun 0.1.0`."""
    body: dict[str, Any] = {
        "eat_profile": PROFILE,
        "iat": int(verdict.at.timestamp()),
        "ear_verifier_id": {"developer": "veilrun", "build": build},
        "ear_status": verdict.status,
        "submods": {one.label: _submodule(one) for one in verdict.appraisals},
    }
    if verdict.demands.nonce is not None:
        body["eat_nonce"] = _base64url(verdict.demands.nonce)
    return json.dumps(body).encode()


def _submodule(appraisal: Appraisal) -> dict[str, Any]:
    body: dict[str, Any] = {
        "ear_status": appraisal.status,
        "ear_trustworthiness_vector": appraisal.vector,
        "ear_verifier_claims": {"checks": [_check(one) for one in appraisal.checks]},
    }
    if appraisal.claims is not None:
        body["ear_attester_claims"] = _claims(appraisal.claims)
    return body


def _check(check: Check) -> dict[str, str]:
    body = {"name": check.name, "outcome": check.outcome}
    if check.reason is not None:
        body["reason"] = check.reason
    if check.detail:
        body["detail"] = check.detail
    return body


def _claims(claims: Claims) -> dict[str, Any]:
    """What is known only; bytes as hex, times as RFC 3339."""
    tcb = claims.tcb
    body = {
        "kind": claims.kind,
        "measurements": dict(claims.measurements),
        "versions": dict(claims.versions),
        "identity": dict(claims.identity),
        "nonce": None if claims.nonce is None else claims.nonce.hex(),
        "report_data": None if claims.report_data is None else claims.report_data.hex(),
        "made_at": None if claims.made_at is None else claims.made_at.isoformat(),
        "debug": claims.debug,
        "tcb": None if tcb is None else {"status": tcb.status, "advisories": list(tcb.advisories)},
        "nested": [_claims(one) for one in claims.nested],
    }
    return {name: value for name, value in body.items() if value not in (None, {}, [])}


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")
