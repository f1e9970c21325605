"""What Azure's paravisor (HCL) writes about a confidential VM: a TEE report and what it binds.

    header         32   `HCLA`, version (4), size without padding (4), request (4: 2), status (4),
                        reserved (12)
    TEE report   1184   AMD SEV-SNP's, or Intel's TDREPORT and zeros
    runtime header 20   size with this header (4), version (4: 1), TEE (4: 2 SNP, 4 TDX),
                        hash (4: 1 SHA-256), size of the runtime data (4)
    runtime data        JSON: `keys` (JWK `HCLAkPub`, the virtual TPM's), `vm-configuration`, ...
    padding             zeros

Integers are little-endian. The first half of the TEE report's data is the SHA-256 of the runtime
data, the second half zeros: so the TEE vouches for the keys in it.

Covered: the layout, and that binding. Not covered: whether the TEE report is authentic.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

from veilrun.attest.claims import Kind
from veilrun.attest.reading import Cursor
from veilrun.attest.reasons import AppraisalError, Reason
from veilrun.errors import DecodeError

_MAX_BYTES: Final = 1 << 16
_SIGNATURE: Final = b"HCLA"
_TEE_REPORT_BYTES: Final = 1184
_RUNTIME_HEADER_BYTES: Final = 20
_TDX: Final = 4
_KINDS: Final = {2: Kind.AMD_SEV_SNP, _TDX: Kind.INTEL_TDX}
_TEE_AT: Final = 32 + _TEE_REPORT_BYTES + 8
_REPORT_DATA_BYTES: Final = 64
_VERSION_OF_REPORT, _VERSION_OF_RUNTIME_DATA, _REQUEST, _SHA256 = (1, 2), 1, 2, 1


@dataclass(frozen=True)
class HclReport:
    """kind: of the TEE. tee_report: 1184 bytes. runtime_data: JSON, as it was hashed."""

    kind: Kind
    tee_report: bytes
    runtime_data: bytes


def recognise_hcl(data: bytes) -> bool:
    """Whether `data` looks like a report of the paravisor."""
    return data.startswith(_SIGNATURE)


def is_of_tdx(data: bytes) -> bool:
    """Whether `data` looks like a report of the paravisor of a TDX guest."""
    return recognise_hcl(data) and data[_TEE_AT : _TEE_AT + 4] == _TDX.to_bytes(4, "little")


def parse_hcl(data: bytes) -> HclReport:
    """The report in `data`, see above."""
    if len(data) > _MAX_BYTES:
        raise DecodeError(f"HCL report of {len(data)} bytes is over {_MAX_BYTES}")
    cursor = Cursor(data, "HCL report")
    cursor.expect(_SIGNATURE, "signature")
    _one_of(cursor, _VERSION_OF_REPORT, "version")
    size = cursor.number(4, "size")
    _one_of(cursor, (_REQUEST,), "request")
    _one_of(cursor, (0,), "status")
    cursor.expect(bytes(12), "reserved")
    tee_report = cursor.take(_TEE_REPORT_BYTES, "TEE report")
    runtime_size = cursor.number(4, "size with header")
    _one_of(cursor, (_VERSION_OF_RUNTIME_DATA,), "version of runtime data")
    kind = _KINDS[_one_of(cursor, tuple(_KINDS), "TEE")]
    _one_of(cursor, (_SHA256,), "hash")
    runtime_data = cursor.sized(4, "runtime data")
    if runtime_size != _RUNTIME_HEADER_BYTES + len(runtime_data) or size != cursor.at:
        raise DecodeError(f"HCL report: {cursor.at} bytes, its sizes say {size} and {runtime_size}")
    cursor.expect(bytes(cursor.left), "padding")
    return HclReport(kind, tee_report, runtime_data)


def verify_runtime_data(report: HclReport, report_data: bytes, check: str) -> None:
    """The TEE's `report_data`, authentic, is about this runtime data. check: named in errors.

    Raises:
        AppraisalError: digest.
    """
    digest = hashlib.sha256(report.runtime_data).digest()
    if report_data != digest.ljust(_REPORT_DATA_BYTES, b"\0"):
        raise AppraisalError(
            Reason.DIGEST,
            check,
            f"runtime data hashes to {digest.hex()}, the TEE says {report_data[:64].hex()}",
        )


def _one_of(cursor: Cursor, accepted: tuple[int, ...], name: str) -> int:
    value = cursor.number(4, name)
    if value not in accepted:
        raise DecodeError(f"HCL report: {name} {value} is none of {accepted}")
    return value
