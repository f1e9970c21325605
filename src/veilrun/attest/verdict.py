"""One call for all evidence of a machine: authentic, then acceptable; every check by its name.

Steps of `appraise`:
1. Each piece of evidence is authenticated by its vendor's part, with all endorsements at hand.
2. If all are: the policy's rules, and what the caller demands at run time, on what they claim.
   If one is not: no rule is tried, since nothing is known of that machine.
3. Each check belongs to its piece, or to the machine as a whole. One failure refuses it all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from veilrun.attest.bundle import Bundle
from veilrun.attest.checks import Check, CheckLog
from veilrun.attest.claims import Claims, Kind
from veilrun.attest.kinds import Evidence, authenticate
from veilrun.attest.machine_rules import BoundToTls, BoundToWeights
from veilrun.attest.policy import MACHINE, Demands, Machine, Piece, Rule
from veilrun.attest.reasons import AppraisalError, Reason
from veilrun.attest.rules import Freshness
from veilrun.attest.trust import BEST_FIRST, NOT_REACHED, Status, status_of, vector_of
from veilrun.errors import UsageError


@dataclass(frozen=True)
class Appraisal:
    """What was found about one piece of evidence (kind and claims set), or the machine (None).

    claims: None where it is not authentic.
    """

    label: str
    kind: Kind | None
    claims: Claims | None
    checks: tuple[Check, ...]

    @property
    def vector(self) -> dict[str, int]:
        """AR4SI's trustworthiness vector."""
        return vector_of(self.claims, self.checks)

    @property
    def status(self) -> Status:
        """`affirming` or `warning`: accepted. `none`: not judged. `contraindicated`: refused."""
        return status_of(self.claims, self.checks)


@dataclass(frozen=True)
class Verdict:
    """What was found about a machine, at a time, for what the caller demanded."""

    appraisals: tuple[Appraisal, ...]
    demands: Demands
    at: datetime

    @property
    def checks(self) -> Iterator[Check]:
        """All of them, in order."""
        return (check for one in self.appraisals for check in one.checks)

    @property
    def status(self) -> Status:
        """The worst one."""
        return max((one.status for one in self.appraisals), key=BEST_FIRST.index)

    @property
    def accepted(self) -> bool:
        """Whether the policy accepts the machine."""
        return self.status in ("affirming", "warning")


def appraise(bundle: Bundle, policy: Rule, demands: Demands, at: datetime) -> Verdict:
    """Is this machine what the policy asks for? Steps as above. at: with its time zone.

    Raises:
        UsageError: there is no evidence, `at` has no time zone, or a library is missing.
        DecodeError: an endorsement does not parse.
    """
    if not bundle.evidence:
        raise UsageError("there is no evidence to appraise")
    if at.tzinfo is None:
        raise UsageError("the time of appraisal needs a time zone")
    # 1. authentic
    parts = [
        _authenticated(label, one, bundle, at)
        for label, one in zip(_labels(bundle.evidence), bundle.evidence, strict=True)
    ]
    if any(part.claims is None for part in parts):
        found = {part.label: [_not_reached(part.label)] for part in parts}
    else:
        # 2. acceptable
        pieces = [
            Piece(part.label, part.claims, one.source)
            for part, one in zip(parts, bundle.evidence, strict=True)
            if part.claims is not None
        ]
        machine = Machine(pieces, demands, at, bundle.binding)
        found = _by_label(policy, machine)
    # 3. by piece
    appraisals = [
        Appraisal(part.label, part.kind, part.claims, (*part.checks, *found.pop(part.label, ())))
        for part in parts
    ]
    whole = [Appraisal(label, None, None, tuple(checks)) for label, checks in found.items()]
    return Verdict((*appraisals, *whole), demands, at)


def require(verdict: Verdict) -> None:
    """The policy accepts the machine.

    Raises:
        AppraisalError: with the first check that failed.
    """
    for check in verdict.checks:
        if check.outcome == "failed":
            raise AppraisalError(
                check.reason or Reason.CONFIGURATION, f"{check.about}: {check.name}", check.detail
            )
    if not verdict.accepted:  # e.g. no check at all: never let that pass
        raise AppraisalError(Reason.MISSING, MACHINE, "not everything was appraised")


def _labels(evidence: Sequence[Evidence]) -> list[str]:
    """`intel-tdx`; `nvidia-gpu-1`, ... where there are several of a kind."""
    totals, seen = Counter(one.kind for one in evidence), Counter[Kind]()
    labels = []
    for one in evidence:
        seen[one.kind] += 1
        labels.append(one.kind if totals[one.kind] == 1 else f"{one.kind}-{seen[one.kind]}")
    return [str(label) for label in labels]


def _authenticated(label: str, evidence: Evidence, bundle: Bundle, at: datetime) -> Appraisal:
    log = CheckLog(label)
    try:
        claims = authenticate(evidence, bundle.endorsements, at, log)
    except AppraisalError as error:
        if not any(check.outcome == "failed" for check in log.checks):
            log.checks.append(Check(label, error.check, "failed", error.reason, error.detail))
        return Appraisal(label, evidence.kind, None, tuple(log.checks))
    return Appraisal(label, evidence.kind, claims, tuple(log.checks))


def _by_label(policy: Rule, machine: Machine) -> dict[str, list[Check]]:
    demands = machine.demands
    demanded: list[Rule] = [Freshness(needs_nonce=False)]
    if demands.tls_key_sha256 is not None:
        demanded.append(BoundToTls())
    if demands.weights_root is not None:
        demanded.append(BoundToWeights())
    # The policy may ask for the same; a check that is equal counts once.
    checks = dict.fromkeys(check for rule in (policy, *demanded) for check in rule.checks(machine))
    found: dict[str, list[Check]] = {}
    for check in (*checks, *_unmeasured(machine, checks)):
        found.setdefault(check.about, []).append(check)
    return found


def _unmeasured(machine: Machine, checks: Iterable[Check]) -> Iterator[Check]:
    """Said of each CPU and TPM, since any software would pass."""
    measured = {one.about for one in checks if one.name.startswith("measurement")}
    for piece in machine.hosts():
        if piece.label not in measured:
            detail = "the policy names no reference values"
            yield Check(piece.label, "measurement", "skipped", detail=detail)


def _not_reached(label: str) -> Check:
    return Check(label, NOT_REACHED, "skipped", detail="not reached: not all evidence is authentic")
