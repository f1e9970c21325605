"""Why evidence is refused: one name for each, in verdicts, in errors and in tests."""

from __future__ import annotations

from enum import StrEnum

from veilrun.errors import VerificationError


class Reason(StrEnum):
    """What is wrong with evidence."""

    SIGNATURE = "signature"  # does not verify under the key it names
    CHAIN = "chain"  # does not lead to a pinned root
    EXPIRED = "expired"
    NOT_YET_VALID = "not-yet-valid"
    REVOKED = "revoked"
    NO_ENDORSEMENT = "no-endorsement"  # a certificate, list or manifest is not at hand
    TCB_LEVEL = "tcb-level"  # no listed level matches, or one that the policy does not accept
    DEBUG = "debug"
    MEASUREMENT = "measurement"  # differs from the reference values
    NONCE = "nonce"
    STALE = "stale"  # older than the policy allows
    DIGEST = "digest"  # signed content was altered
    EVENT_LOG = "event-log"  # replay does not give the quoted registers
    VERSION = "version"  # below the minimum
    BINDING_TLS = "binding-tls"  # not about the key of this connection
    BINDING_WEIGHTS = "binding-weights"  # not about the weights that are served
    BINDING_GPU = "binding-gpu"  # CPU and GPU evidence do not belong together
    MISSING = "missing"  # the policy demands a kind of evidence that is not there
    CONFIGURATION = "configuration"  # a reserved bit, a mode or a policy bit that must not be so


class AppraisalError(VerificationError):
    """Evidence fails a check. reason: its name; check: which step."""

    def __init__(self, reason: Reason, check: str, detail: str) -> None:
        super().__init__(f"{check}: {detail} ({reason})")
        self.reason, self.check, self.detail = reason, check, detail
