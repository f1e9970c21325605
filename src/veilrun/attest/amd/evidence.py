"""What reports come in: nothing, Azure's HCL report (`hcl`), or dstack's envelope (`dstack`)."""

from __future__ import annotations

from dataclasses import dataclass, field

from veilrun.attest.amd.report import REPORT_BYTES, SnpReport, is_report, parse_report
from veilrun.attest.claims import Kind
from veilrun.attest.dstack import parse_envelope, peek
from veilrun.attest.endorsements import Endorsements
from veilrun.attest.hcl import HclReport, is_of_tdx, parse_hcl, recognise_hcl
from veilrun.errors import DecodeError


@dataclass(frozen=True, eq=False)
class SnpEvidence:
    """carried: certificates that came with the report. runtime: what a paravisor's report says.
    stated: the report data, as an envelope states them.
    """

    report: SnpReport
    carried: Endorsements = field(default_factory=Endorsements)
    runtime: HclReport | None = None
    stated: bytes | None = None

    @property
    def kind(self) -> Kind:
        """AMD SEV-SNP."""
        return Kind.AMD_SEV_SNP


def recognise(data: bytes) -> bool:
    """Whether `data` looks like evidence of a SEV-SNP guest."""
    if recognise_hcl(data):
        return not is_of_tdx(data)
    return (len(data) == REPORT_BYTES and is_report(data)) or is_report(
        peek(data, Kind.AMD_SEV_SNP)
    )


def parse(data: bytes) -> SnpEvidence:
    """The evidence in `data`."""
    if recognise_hcl(data):
        runtime = parse_hcl(data)
        if runtime.kind is not Kind.AMD_SEV_SNP:
            raise DecodeError(f"HCL report of kind {runtime.kind}")
        return SnpEvidence(parse_report(runtime.tee_report), runtime=runtime)
    if peek(data, Kind.AMD_SEV_SNP):
        envelope = parse_envelope(data, Kind.AMD_SEV_SNP)
        report = parse_report(envelope.evidence)
        return SnpEvidence(report, envelope.carried, stated=envelope.report_data)
    return SnpEvidence(parse_report(data))
