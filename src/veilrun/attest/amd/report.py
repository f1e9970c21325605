"""A guest's report: 1184 bytes, little-endian. Versions 2, 3 and 5.

    000 version (4)             004 guest's version (4)      008 policy (8)
    010 family id (16)          020 image id (16)            030 privilege level (4)
    034 algorithm (4)           038 current TCB (8)          040 platform (8)
    048 flags (4)               050 report data (64)         090 measurement (48)
    0C0 host data (32)          0E0 id key digest (48)       110 author key digest (48)
    140 report id (32)          160 of migration agent (32)  180 reported TCB (8)
    188 family, model, stepping (3; from version 3)          1A0 chip id (64)
    1E0 committed TCB (8)       1E8 firmware: build, minor, major (3)
    1EC committed firmware (3)  1F0 launch TCB (8)           1F8 mitigations (16; from version 5)
    2A0 signature: r (72), s (72), over all before it

Algorithm 1 is ECDSA P-384 with SHA-384. Flags: bit 0 the author key is in use, bit 1 the chip key
is masked, bits 2 to 4 the signer (0 VCEK, 1 VLEK). All else is zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from veilrun.attest.reading import Cursor
from veilrun.errors import DecodeError

REPORT_BYTES: Final = 1184
_VERSIONS: Final = (2, 3, 5)
_VERSION_WITH_PROCESSOR, _VERSION_WITH_MITIGATIONS = 3, 5
_ECDSA_P384_SHA384: Final = 1
_SIGNERS: Final = {0: "VCEK", 1: "VLEK"}
_MASKED_CHIP_KEY: Final = 1 << 1
_DEBUG: Final = 1 << 19


@dataclass(frozen=True)
class SnpReport:
    """signer: VCEK or VLEK. processor: family and model, where the report says. firmware:
    `1.55.29`, the one that runs. signed: the bytes that `signature` (r, s) is over.
    """

    version: int
    guest_svn: int
    policy: int
    family_id: bytes
    image_id: bytes
    vmpl: int
    platform_info: int
    signer: str
    chip_key_masked: bool
    report_data: bytes
    measurement: bytes
    host_data: bytes
    id_key_digest: bytes
    author_key_digest: bytes
    report_id: bytes
    reported_tcb: bytes
    processor: tuple[int, int] | None
    chip_id: bytes
    firmware: str
    signed: bytes
    signature: tuple[int, int]

    @property
    def debug(self) -> bool:
        """Whether the host may read and change the guest's memory."""
        return bool(self.policy & _DEBUG)

    def measurements(self) -> dict[str, str]:
        """As hex, numbers without leading zeros."""
        return {
            "measurement": self.measurement.hex(),
            "host_data": self.host_data.hex(),
            "id_key_digest": self.id_key_digest.hex(),
            "author_key_digest": self.author_key_digest.hex(),
            "family_id": self.family_id.hex(),
            "image_id": self.image_id.hex(),
            "policy": f"{self.policy:x}",
            "platform_info": f"{self.platform_info:x}",
            "vmpl": f"{self.vmpl:x}",
        }


def is_report(data: bytes) -> bool:
    """Whether `data` begins like a report."""
    return data[:4] in [version.to_bytes(4, "little") for version in _VERSIONS]


def parse_report(data: bytes) -> SnpReport:
    """The report in `data`, see above."""
    cursor = Cursor(data, "SNP report")
    version = cursor.number(4, "version")
    if version not in _VERSIONS:
        raise DecodeError(f"SNP report: version {version} is none of {_VERSIONS}")
    guest_svn, policy = cursor.number(4, "guest's version"), cursor.number(8, "policy")
    family_id, image_id = cursor.take(16, "family id"), cursor.take(16, "image id")
    vmpl, algorithm = cursor.number(4, "privilege level"), cursor.number(4, "algorithm")
    if algorithm != _ECDSA_P384_SHA384:
        raise DecodeError(f"SNP report: algorithm {algorithm} is not {_ECDSA_P384_SHA384}")
    cursor.take(8, "current TCB")
    platform_info, flags = cursor.number(8, "platform"), cursor.number(4, "flags")
    if flags >> 2 not in _SIGNERS:
        raise DecodeError(f"SNP report: flags {flags:#x} name no signer")
    _reserved(cursor, 0x50)
    report_data, measurement = cursor.take(64, "report data"), cursor.take(48, "measurement")
    host_data = cursor.take(32, "host data")
    id_key, author_key = cursor.take(48, "id key"), cursor.take(48, "author key")
    report_id = cursor.take(32, "report id")
    cursor.take(32, "report id of migration agent")
    reported_tcb = cursor.take(8, "reported TCB")
    processor = _processor(cursor, version)
    chip_id = cursor.take(64, "chip id")
    firmware = _firmware(cursor, version)
    signed = data[: cursor.at]
    signature = cursor.number(72, "r"), cursor.number(72, "s")
    _reserved(cursor, REPORT_BYTES)
    cursor.finish()
    return SnpReport(
        version,
        guest_svn,
        policy,
        family_id,
        image_id,
        vmpl,
        platform_info,
        _SIGNERS[flags >> 2],
        bool(flags & _MASKED_CHIP_KEY),
        report_data,
        measurement,
        host_data,
        id_key,
        author_key,
        report_id,
        reported_tcb,
        processor,
        chip_id,
        firmware,
        signed,
        signature,
    )


def _processor(cursor: Cursor, version: int) -> tuple[int, int] | None:
    processor = None
    if version >= _VERSION_WITH_PROCESSOR:
        processor = cursor.number(1, "family"), cursor.number(1, "model")
        cursor.take(1, "stepping")
    _reserved(cursor, 0x1A0)
    return processor


def _firmware(cursor: Cursor, version: int) -> str:
    cursor.take(8, "committed TCB")
    build, minor, major = cursor.take(3, "firmware")
    _reserved(cursor, 0x1EC)
    cursor.take(3, "committed firmware")
    _reserved(cursor, 0x1F0)
    cursor.take(8, "launch TCB")
    if version >= _VERSION_WITH_MITIGATIONS:
        cursor.take(16, "mitigations")
    _reserved(cursor, 0x2A0)
    return f"{major}.{minor}.{build}"


def _reserved(cursor: Cursor, end: int) -> None:
    """Zeros up to `end`."""
    cursor.expect(bytes(end - cursor.at), "reserved bytes")
