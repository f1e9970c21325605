"""Does a device measure as the vendor's manifests say? Driver and VBIOS; for switches, BIOS only.

Steps for each of the two, in `compare_references`:
1. Take the manifests at hand for this chip; none: skipped, the policy decides.
2. Of these, the ones for the very version that the report states, and verified; none: an error.
3. Every active index i agrees with block i+1 of the report. Index 35 counts only with NVDEC0 on.
4. No index is active in both: one of them would then override the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from veilrun.attest.checks import CheckLog
from veilrun.attest.claims import Kind
from veilrun.attest.endorsements import Endorsements
from veilrun.attest.nvidia.manifest import Manifest, parse_manifest, verified_manifest
from veilrun.attest.nvidia.report import DeviceReport
from veilrun.attest.reasons import AppraisalError, Reason
from veilrun.errors import DecodeError

_NVDEC0_INDEX: Final = 35
_STEP: Final = "reference measurements"


def compare_references(
    report: DeviceReport, chip: str, endorsements: Endorsements, at: datetime, log: CheckLog
) -> bool:
    """Steps as above. chip: `GH100`. Whether all manifests that there should be were at hand.

    Raises:
        AppraisalError: measurement, and what `verified_manifest` raises.
    """
    versions = report.versions()
    matched = []
    for role, version in versions.items():
        # 1. at hand
        at_hand = [
            (data, claimed)
            for data in endorsements.manifests
            if (claimed := _claimed(data)) and (claimed.product, claimed.role) == (chip, role)
        ]
        if not at_hand:
            log.skip(f"{role} {_STEP}", f"no manifest for the {role} of {chip} at hand")
            continue
        with log.step(f"{role} manifest"):
            # 2. this version, verified
            candidates = [data for data, claimed in at_hand if claimed.version == version]
            if not candidates:
                raise AppraisalError(
                    Reason.MEASUREMENT,
                    f"{role} manifest",
                    f"the report says {version}, manifests are for "
                    + ", ".join(sorted({claimed.version for _, claimed in at_hand})),
                )
            manifests = _verified(candidates, endorsements, at, f"{role} manifest")
        with log.step(f"{role} {_STEP}"):
            # 3. compare
            matched.append(_match(report, manifests, f"{role} {_STEP}"))
    if len(matched) == 2:
        with log.step("manifests apart"):
            # 4. no index in both
            _verify_apart(*matched)
    return len(matched) == len(versions)


def mismatches(report: DeviceReport, manifest: Manifest) -> list[int]:
    """Active indices whose block has none of the accepted values, or is not there."""
    return [
        index
        for index, accepted in sorted(manifest.references.items())
        if not (index == _NVDEC0_INDEX and report.kind is Kind.NVIDIA_GPU and not report.has_nvdec0)
        and not (index < len(report.blocks) and report.blocks[index].hex() in accepted)
    ]


def _claimed(data: bytes) -> Manifest | None:
    """What a manifest says of itself; None for what is no manifest."""
    try:
        return parse_manifest(data)
    except DecodeError:
        return None


def _verified(
    candidates: Sequence[bytes], endorsements: Endorsements, at: datetime, check: str
) -> list[Manifest]:
    """Those that verify; if none does, the first one's error. Manifests are reissued."""
    manifests, first = [], None
    for data in candidates:
        try:
            manifests.append(verified_manifest(data, endorsements, at, check))
        except AppraisalError as error:
            first = first or error
    if first is not None and not manifests:
        raise first
    return manifests


def _match(report: DeviceReport, manifests: Sequence[Manifest], check: str) -> Manifest:
    wrong = [mismatches(report, one) for one in manifests]
    for one, indices in zip(manifests, wrong, strict=True):
        if one.references and not indices:
            return one
    raise AppraisalError(
        Reason.MEASUREMENT,
        check,
        f"{len(wrong[0])} of {len(manifests[0].references)} differ, at indices {wrong[0]}",
    )


def _verify_apart(one: Manifest, other: Manifest) -> None:
    both = sorted(one.references.keys() & other.references.keys())
    if both:
        raise AppraisalError(
            Reason.MEASUREMENT, "manifests apart", f"indices {both} are active in both manifests"
        )
