"""Rules about each piece of evidence, and about what it rests on: its platform, state and age."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import zip_longest
from typing import Final

from veilrun.attest.checks import Check
from veilrun.attest.claims import Claims, Kind, Tcb
from veilrun.attest.policy import MACHINE, Machine, Piece, failed, passed
from veilrun.attest.reasons import Reason

UNKNOWN: Final = "unknown"
"""The status of a platform whose vendor's data was not at hand."""

STRICT_TCB: Final[Mapping[Kind, frozenset[str]]] = {
    Kind.INTEL_SGX: frozenset({"UpToDate"}),
    Kind.INTEL_TDX: frozenset({"UpToDate"}),
    Kind.NVIDIA_GPU: frozenset({"success"}),
    Kind.NVIDIA_SWITCH: frozenset({"success"}),
}
"""Kinds whose vendor grades a platform, and the best grade."""

_HAS_DEBUG: Final = (Kind.INTEL_SGX, Kind.INTEL_TDX, Kind.AMD_SEV_SNP, Kind.AWS_NITRO)
_CLOCK_SKEW_S: Final = 60
_COMPONENT: Final = {10: re.compile(r"[0-9]{1,18}"), 16: re.compile(r"[0-9A-Fa-f]{1,16}")}


@dataclass(frozen=True)
class AcceptedTcb:
    """The platform's grade is one of those accepted; `unknown` for one without a grade.

    accepted: kind -> the vendor's words. Kinds that are not in it, and have no grade, pass.
    """

    accepted: Mapping[Kind, frozenset[str]] = field(default_factory=lambda: STRICT_TCB)

    def checks(self, machine: Machine) -> Iterator[Check]:
        for label, claims in machine.all_claims():
            if claims.tcb is None and claims.kind not in self.accepted:
                continue
            status = claims.tcb.status if claims.tcb else UNKNOWN
            found, accepted = _graded(claims.tcb, machine.at), self.accepted.get(claims.kind, ())
            if status in accepted:
                yield passed(label, "tcb", found)
            else:
                words = " or ".join(sorted(accepted)) or "none"
                detail = f"{found}; the policy accepts {words}"
                yield failed(label, "tcb", Reason.TCB_LEVEL, detail)


@dataclass(frozen=True)
class NoDebug:
    """Nobody can look into it from outside."""

    def checks(self, machine: Machine) -> Iterator[Check]:
        for label, claims in machine.all_claims():
            if claims.debug:
                yield failed(label, "debug", Reason.DEBUG, f"{claims.kind} in debug mode")
            elif claims.debug is False:
                yield passed(label, "debug", "off")
            elif claims.kind in _HAS_DEBUG:
                yield failed(label, "debug", Reason.DEBUG, "the evidence does not say")


@dataclass(frozen=True)
class Freshness:
    """Made for this caller, and not too long ago.

    The nonce, if demanded, is in each piece: in its own field, at the start of report data that is
    otherwise zero, or in the binding. What a piece rests on is as fresh as the piece.

    needs_nonce: the caller must demand one. max_age_s: where evidence does not say when it was
    made, the nonce must do.
    """

    needs_nonce: bool = True
    max_age_s: float | None = None

    def checks(self, machine: Machine) -> Iterator[Check]:
        if machine.demands.nonce is None and self.needs_nonce:
            yield failed(MACHINE, "nonce", Reason.NONCE, "the policy asks for one, none was given")
        for piece in machine.pieces:
            if machine.demands.nonce is not None:
                yield _nonce(machine, piece, machine.demands.nonce)
            if self.max_age_s is not None:
                yield _age(machine, piece, self.max_age_s)


@dataclass(frozen=True)
class Measurements:
    """Every piece of one kind measures as accepted, and there is one.

    accepted: name -> values, lower-case hex.
    """

    kind: Kind
    accepted: Mapping[str, frozenset[str]]

    def checks(self, machine: Machine) -> Iterator[Check]:
        yield from _missing(machine, self.kind, "measurement")
        for label, claims in machine.of_kind(self.kind):
            for name, accepted in self.accepted.items():
                value, title = claims.measurements.get(name), f"measurement {name}"
                if value in accepted:
                    yield passed(label, title)
                elif value is None:
                    names = ", ".join(sorted(claims.measurements)[:12])
                    detail = f"not in the evidence, which has {names}"
                    yield failed(label, title, Reason.MEASUREMENT, detail)
                else:
                    yield failed(label, title, Reason.MEASUREMENT, f"{value} is not accepted")


@dataclass(frozen=True)
class MinimumVersion:
    """Every piece of one kind has at least this version of something, and there is one.

    Compared as numbers, component by component; missing components are zero. Those of NVIDIA's
    VBIOS are hexadecimal (`96.00.A5.00.01`).
    """

    kind: Kind
    name: str
    version: str

    def checks(self, machine: Machine) -> Iterator[Check]:
        title = f"version {self.name}"
        yield from _missing(machine, self.kind, title)
        for label, claims in machine.of_kind(self.kind):
            version = claims.versions.get(self.name)
            if version is not None and _at_least(version, self.version, self.name):
                yield passed(label, title, version)
            else:
                detail = f"{version or 'not in the evidence'}, the policy asks for {self.version}"
                yield failed(label, title, Reason.VERSION, detail)


@dataclass(frozen=True)
class AttestationKeys:
    """A TPM's attestation key is one of those named, or, if none are, one that is vouched for.

    `Claims.identity` of a TPM has `attestation_key` (SHA-256 of its public key,
    SubjectPublicKeyInfo) and `vouched_by` (`certificate` or `tee`), the latter only if someone did.
    """

    keys: frozenset[str] = frozenset()

    def checks(self, machine: Machine) -> Iterator[Check]:
        for label, claims in machine.of_kind(Kind.TPM):
            key = claims.identity.get("attestation_key", "")
            voucher = claims.identity.get("vouched_by")
            if key in self.keys:
                yield passed(label, "attestation key", "named by the policy")
            elif voucher is not None and not self.keys:
                yield passed(label, "attestation key", f"vouched for by {voucher}")
            else:
                detail = f"{key} is not named by the policy" + (
                    "" if voucher else ", and nobody vouches for it"
                )
                yield failed(label, "attestation key", Reason.CHAIN, detail)


def is_version(text: str, name: str) -> bool:
    """Whether `text` is a version that `MinimumVersion` can compare."""
    return _components(text, name) is not None


def _graded(tcb: Tcb | None, at: datetime) -> str:
    """`OutOfDate since 2024-03-13 (464 days), open: INTEL-SA-00837`."""
    if tcb is None:
        return UNKNOWN
    since = f" since {tcb.dated:%Y-%m-%d} ({(at - tcb.dated).days} days)" if tcb.dated else ""
    advisories = f", open: {', '.join(tcb.advisories)}" if tcb.advisories else ""
    return tcb.status + since + advisories


def _nonce(machine: Machine, piece: Piece, nonce: bytes) -> Check:
    claims, binding = piece.claims, machine.binding
    if claims.nonce == nonce:
        return passed(piece.label, "nonce")
    if claims.report_data == nonce.ljust(len(claims.report_data or b""), b"\0"):
        return passed(piece.label, "nonce", "in the report data")
    if binding is not None and binding.is_in(claims):
        if binding.nonce == nonce:
            return passed(piece.label, "nonce", "in the binding")
        found = binding.nonce
    else:
        found = claims.nonce or claims.report_data or b""
    detail = f"evidence is for {found.hex() or 'none'}, not for {nonce.hex()}"
    return failed(piece.label, "nonce", Reason.NONCE, detail)


def _age(machine: Machine, piece: Piece, max_age_s: float) -> Check:
    made_at = piece.claims.made_at
    if made_at is None:
        if machine.demands.nonce is not None:
            return passed(piece.label, "age", "as fresh as the nonce")
        return failed(piece.label, "age", Reason.STALE, "it does not say when it was made")
    age = machine.at - made_at
    if age > timedelta(seconds=max_age_s):
        detail = f"{age.total_seconds():.0f} s old, the policy allows {max_age_s:.0f} s"
        return failed(piece.label, "age", Reason.STALE, detail)
    if age < timedelta(seconds=-_CLOCK_SKEW_S):
        return failed(piece.label, "age", Reason.STALE, f"from the future: made at {made_at}")
    return passed(piece.label, "age", f"{age.total_seconds():.0f} s")


def _missing(machine: Machine, kind: Kind, title: str) -> Iterator[Check]:
    if not machine.of_kind(kind):
        yield failed(MACHINE, title, Reason.MISSING, f"no {kind} evidence to compare")


def _at_least(version: str, minimum: str, name: str) -> bool:
    found, least = _components(version, name), _components(minimum, name)
    if found is None or least is None:
        return False
    pairs = list(zip_longest(found, least, fillvalue=0))
    return [one for one, _ in pairs] >= [one for _, one in pairs]


def _components(version: str, name: str) -> list[int] | None:
    base = 16 if name == "vbios" else 10
    parts = version.split(".")
    if not all(_COMPONENT[base].fullmatch(part) for part in parts):
        return None
    return [int(part, base) for part in parts]


def best_grade(claims: Claims) -> bool:
    """Whether the vendor grades such platforms, if at all, and gives this one the best grade."""
    best = STRICT_TCB.get(claims.kind)
    if best is None:
        return True
    return claims.tcb is not None and claims.tcb.status in best
