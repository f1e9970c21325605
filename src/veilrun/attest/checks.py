"""The steps of a verification, as they happen: each named, with its outcome and the reason.

    log = CheckLog("amd-sev-snp")
    with log.step("report signature"):
        verify_signature(...)          # raises AppraisalError, or nothing

The first step that fails ends a vendor's verification; what comes after it is not tried, and the
verdict does not count it as passed. Policies try all their rules.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from veilrun.attest.reasons import AppraisalError, Reason

Outcome = Literal["passed", "failed", "skipped"]


@dataclass(frozen=True, slots=True)
class Check:
    """One step. about: the kind of evidence. reason: for a failure. detail: for people."""

    about: str
    name: str
    outcome: Outcome
    reason: Reason | None = None
    detail: str = ""


class CheckLog:
    """The checks of one piece of evidence, in order."""

    def __init__(self, about: str) -> None:
        self.about = about
        self.checks: list[Check] = []

    @contextmanager
    def step(self, name: str, detail: str = "") -> Iterator[None]:
        """A step: passed if the block ends, failed if it raises AppraisalError (raised on)."""
        try:
            yield
        except AppraisalError as error:
            self.checks.append(Check(self.about, name, "failed", error.reason, error.detail))
            raise
        self.checks.append(Check(self.about, name, "passed", detail=detail))

    def skip(self, name: str, why: str) -> None:
        """A step that could not be made, and why. Policies decide whether that is acceptable."""
        self.checks.append(Check(self.about, name, "skipped", detail=why))
