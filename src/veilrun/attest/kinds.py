"""Which part of the package reads and verifies which kind of evidence: one line for each vendor.

Parsers are imported when bytes are looked at, verifiers when evidence is verified: an optional
library that is missing stops only what needs it, and the error says what to install.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, cast

from veilrun.attest.checks import CheckLog
from veilrun.attest.claims import Claims, Kind
from veilrun.attest.endorsements import Endorsements
from veilrun.errors import DecodeError, UsageError


@dataclass(frozen=True, slots=True)
class Family:
    """The modules for some kinds.

    parser: has `recognise(data)`, `parse(data)` whose result has a `kind`, and `split(data)` if
    a file may hold several devices. verifier: has `authenticate(report, endorsements, at, log)`.
    """

    kinds: tuple[Kind, ...]
    parser: str
    verifier: str


FAMILIES: Final = (
    Family((Kind.INTEL_SGX, Kind.INTEL_TDX), "intel.evidence", "intel.authenticate"),
    Family((Kind.AMD_SEV_SNP,), "amd.evidence", "amd.authenticate"),
    Family((Kind.NVIDIA_GPU, Kind.NVIDIA_SWITCH), "nvidia.evidence", "nvidia.authenticate"),
    Family((Kind.AWS_NITRO,), "nitro.document", "nitro.authenticate"),
    Family((Kind.TPM,), "tpm.evidence", "tpm.authenticate"),
)


@dataclass(frozen=True, eq=False)
class Evidence:
    """One device's evidence, parsed and not verified.

    report: what its family's parser gives. source: the piece it came in; devices may share one.
    """

    kind: Kind
    report: Any
    source: bytes


def read_evidence(data: bytes, kind: Kind | None = None) -> tuple[Evidence, ...]:
    """The evidence in `data`: of `kind`, or of the first family that recognises it, else none.

    Raises:
        DecodeError: malformed, or of another kind.
        UsageError: a library is missing.
    """
    family = _recognised(data) if kind is None else _family(kind)
    if family is None:
        return ()
    parser = optional_module(family.parser)
    parts = parser.split(data) if hasattr(parser, "split") else (data,)
    reports = [parser.parse(part) for part in parts]
    wrong = [one.kind for one in reports if kind not in (None, one.kind)]
    if wrong:
        raise DecodeError(f"evidence is of kind {wrong[0]}, not {kind}")
    return tuple(Evidence(one.kind, one, data) for one in reports)


def authenticate(
    evidence: Evidence, endorsements: Endorsements, at: datetime, log: CheckLog
) -> Claims:
    """What `evidence` proves at the time.

    Raises:
        AppraisalError: it is not authentic.
        UsageError: a library is missing.
    """
    verifier = optional_module(_family(evidence.kind).verifier)
    return cast(Claims, verifier.authenticate(evidence.report, endorsements, at, log))


def _recognised(data: bytes) -> Family | None:
    missing: UsageError | None = None
    for family in FAMILIES:
        try:
            parser = optional_module(family.parser)
        except UsageError as error:  # another family may know the bytes
            missing = error
            continue
        if parser.recognise(data):
            return family
    if missing is not None:
        raise missing
    return None


def _family(kind: Kind) -> Family:
    for family in FAMILIES:
        if kind in family.kinds:
            return family
    raise DecodeError(f"no verifier of {kind} evidence in this version")


def optional_module(name: str) -> Any:
    """The module of this package with that name, which may need an optional library.

    Raises:
        UsageError: the library is missing.
    """
    try:
        return importlib.import_module(f"veilrun.attest.{name}")
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("veilrun"):
            raise
        raise UsageError(
            f"this evidence needs the library {error.name}: pip install 'veilrun[attest]'"
        ) from error
