"""How much each aspect of a machine is trusted: AR4SI's trustworthiness vector, and its tiers.

The vector has an aspect only if something was checked about it. The status of an appraisal is
never better than its worst aspect, and refused if any check failed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, Literal

from veilrun.attest.checks import Check
from veilrun.attest.claims import Claims, Kind
from veilrun.attest.policy import GPU_KINDS, with_nested
from veilrun.attest.reasons import Reason
from veilrun.attest.rules import best_grade

Status = Literal["affirming", "warning", "none", "contraindicated"]
BEST_FIRST: Final[tuple[Status, ...]] = ("affirming", "warning", "none", "contraindicated")
NOT_REACHED: Final = "policy"
"""The check that stands for all rules where none was tried."""

# Values of draft-ietf-rats-ar4si: 2 to 31 affirm, 32 to 95 warn, 96 and above contraindicate.
_WARNING: Final = 32
_GENUINE_HARDWARE, _UNSAFE_HARDWARE, _REFUSED_HARDWARE, _UNKNOWN_HARDWARE = 2, 32, 96, 97
_APPROVED_CONFIG, _UNSUPPORTABLE_CONFIG = 2, 96
_APPROVED_BOOT, _UNRECOGNISED_RUNTIME = 3, 33
_KNOWN_INSTANCE, _UNKNOWN_INSTANCE = 2, 97
_ENCRYPTED_MEMORY, _ISOLATED_MEMORY = 2, 32
_CRYPTO_FAILED: Final = 99

_ENCRYPTS_MEMORY: Final = (Kind.INTEL_SGX, Kind.INTEL_TDX, Kind.AMD_SEV_SNP, Kind.AWS_NITRO)
# The first word of a check's name -> aspect, value if it holds, value if it does not.
_ASPECTS: Final = {
    "tcb": ("hardware", _GENUINE_HARDWARE, _REFUSED_HARDWARE),
    "version": ("hardware", _GENUINE_HARDWARE, _REFUSED_HARDWARE),
    "debug": ("configuration", _APPROVED_CONFIG, _UNSUPPORTABLE_CONFIG),
    "measurement": ("executables", _APPROVED_BOOT, _UNRECOGNISED_RUNTIME),
    "nonce": ("instance-identity", _KNOWN_INSTANCE, _UNKNOWN_INSTANCE),
    "age": ("instance-identity", _KNOWN_INSTANCE, _UNKNOWN_INSTANCE),
    "binding": ("instance-identity", _KNOWN_INSTANCE, _UNKNOWN_INSTANCE),
    "attestation": ("instance-identity", _KNOWN_INSTANCE, _UNKNOWN_INSTANCE),
    "required": ("instance-identity", _KNOWN_INSTANCE, _UNKNOWN_INSTANCE),
}
# Why evidence is not authentic -> aspect and value.
_NOT_AUTHENTIC: Final = {
    Reason.TCB_LEVEL: ("hardware", _REFUSED_HARDWARE),
    Reason.CHAIN: ("hardware", _UNKNOWN_HARDWARE),
    Reason.NO_ENDORSEMENT: ("hardware", _UNKNOWN_HARDWARE),
    Reason.CONFIGURATION: ("configuration", _UNSUPPORTABLE_CONFIG),
    Reason.MEASUREMENT: ("executables", _UNRECOGNISED_RUNTIME),
    Reason.EVENT_LOG: ("executables", _UNRECOGNISED_RUNTIME),
    Reason.NONCE: ("instance-identity", _UNKNOWN_INSTANCE),
}


def vector_of(claims: Claims | None, checks: Sequence[Check]) -> dict[str, int]:
    """The worst value of each aspect. claims: None where evidence is not authentic."""
    vector: dict[str, int] = {}
    for aspect, value in _values(claims, checks):
        vector[aspect] = max(value, vector.get(aspect, 0))
    return vector


def status_of(claims: Claims | None, checks: Sequence[Check]) -> Status:
    """`warning`: accepted, though an aspect is of less than the best. `none`: nothing to judge."""
    outcomes = {one.outcome for one in checks}
    if "failed" in outcomes:
        return "contraindicated"
    if "passed" not in outcomes or any(one.name == NOT_REACHED for one in checks):
        return "none"
    worst = max(vector_of(claims, checks).values(), default=0)
    return "affirming" if worst < _WARNING else "warning"


def _values(claims: Claims | None, checks: Sequence[Check]) -> Iterator[tuple[str, int]]:
    for check in checks:
        by_rule = _ASPECTS.get(check.name.split()[0])
        if by_rule is not None and check.outcome != "skipped":
            aspect, good, bad = by_rule
            yield aspect, good if check.outcome == "passed" else bad
        elif check.reason is not None:
            yield _NOT_AUTHENTIC.get(check.reason, ("hardware", _CRYPTO_FAILED))
    for one in with_nested(claims) if claims is not None else ():
        yield "hardware", _GENUINE_HARDWARE if best_grade(one) else _UNSAFE_HARDWARE
        if one.kind in _ENCRYPTS_MEMORY and one.debug is not None:
            yield "runtime-opaque", _ISOLATED_MEMORY if one.debug else _ENCRYPTED_MEMORY
        if one.kind in GPU_KINDS and best_grade(one):
            yield "executables", _APPROVED_BOOT  # its firmware measures as the vendor says
