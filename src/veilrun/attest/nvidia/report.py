"""One device's report: SPDM 1.1, the request GET_MEASUREMENTS and its response, little-endian.

    request, 37 bytes   11 e0 01 ff, nonce (32), slot (1)
    response            11 60, parameters (2), number of blocks (1), length of blocks (3), blocks,
                        the device's own nonce (32), length (2) + opaque fields,
                        signature (96: r and s, big-endian) over all before it
    block               index from 1 (1), specification 1 (1), size (2),
                        type of value (1), size of value (2), value (48: SHA-384)
    opaque field        type (2), length (2), value

The nonce that a verifier chose is the request's; the device's own proves nothing to it.

Not covered: opaque fields with a header (`NVDAOD`), which newer firmware may write.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from veilrun.attest.claims import Kind
from veilrun.attest.reading import Cursor
from veilrun.errors import DecodeError

MAX_BYTES: Final = 1 << 16
_NONCE_BYTES: Final = 32
_SIGNATURE_BYTES: Final = 96
_HASH_BYTES: Final = 48
_DRIVER, _VBIOS, _NVDEC0, _FWID = 3, 6, 11, 20
_NVDEC0_ON: Final = b"\xaa"
_DRIVER_FORM: Final = re.compile(r"[0-9]{1,5}(\.[0-9]{1,5}){1,3}")
VBIOS_FORM: Final = re.compile(r"[0-9A-F]{2}(\.[0-9A-F]{2}){4}")
# Opaque fields that say how the device is set up, under the names they have in claims.
_SETTINGS: Final = {
    _NVDEC0: "nvdec0",
    _FWID: "fwid",
    21: "protected_pcie",
    22: "switch_ids",
    25: "switch_lock",
    33: "system_enable",
    36: "feature_flag",
}


@dataclass(frozen=True)
class DeviceReport:
    """One report. nonce: the request's. blocks: measurements, block 1 first.

    driver: None for a switch. vbios: `96.00.A5.00.01`. opaque: type -> value. signed: the bytes
    that `signature` is over.
    """

    nonce: bytes
    blocks: tuple[bytes, ...]
    driver: str | None
    vbios: str
    opaque: Mapping[int, bytes]
    signed: bytes
    signature: bytes

    @property
    def kind(self) -> Kind:
        """GPU or switch: only GPUs have a driver."""
        return Kind.NVIDIA_SWITCH if self.driver is None else Kind.NVIDIA_GPU

    @property
    def firmware_id(self) -> bytes | None:
        """SHA-384 of the firmware that signs; older firmware leaves it out."""
        return self.opaque.get(_FWID)

    @property
    def has_nvdec0(self) -> bool:
        """Whether the video decoder is on: else its measurement means nothing."""
        return self.opaque.get(_NVDEC0) == _NVDEC0_ON

    def versions(self) -> dict[str, str]:
        """`vbios`, and `driver` for a GPU."""
        return {"vbios": self.vbios} | ({} if self.driver is None else {"driver": self.driver})

    def measurements(self) -> dict[str, str]:
        """`block01`, ... and the settings, as hex."""
        named = {f"block{at:02}": value.hex() for at, value in enumerate(self.blocks, 1)}
        named.update(
            (name, self.opaque[key].hex()) for key, name in _SETTINGS.items() if key in self.opaque
        )
        return named


def parse_report(data: bytes) -> DeviceReport:
    """The report in `data`, see above."""
    if len(data) > MAX_BYTES:
        raise DecodeError(f"NVIDIA report of {len(data)} bytes is over {MAX_BYTES}")
    cursor = Cursor(data, "NVIDIA report")
    cursor.expect(b"\x11\xe0\x01\xff", "request")
    nonce = cursor.take(_NONCE_BYTES, "nonce")
    cursor.take(1, "slot")
    cursor.expect(b"\x11\x60", "response")
    cursor.take(2, "parameters")
    n_blocks = cursor.number(1, "number of blocks")
    blocks = _blocks(cursor.sized(3, "blocks", MAX_BYTES), n_blocks)
    cursor.take(_NONCE_BYTES, "device's nonce")
    opaque = _opaque(cursor.sized(2, "opaque fields"))
    signed = data[: cursor.at]
    signature = cursor.take(_SIGNATURE_BYTES, "signature")
    cursor.finish()
    driver = opaque.get(_DRIVER)
    return DeviceReport(
        nonce,
        blocks,
        None if driver is None else _text(driver, _DRIVER_FORM, "driver version"),
        _vbios(opaque.get(_VBIOS), is_switch=driver is None),
        opaque,
        signed,
        signature,
    )


def _blocks(record: bytes, n_blocks: int) -> tuple[bytes, ...]:
    cursor = Cursor(record, "NVIDIA measurements")
    blocks = []
    for index in range(1, n_blocks + 1):
        cursor.expect(bytes([index]), "index")
        cursor.expect(b"\x01", "specification")
        size = cursor.number(2, "size")
        cursor.take(1, "type of value")
        value = cursor.sized(2, "value")
        if len(value) != _HASH_BYTES or size != len(value) + 3:
            raise DecodeError(f"NVIDIA measurement {index} has {size} and {len(value)} bytes")
        blocks.append(value)
    cursor.finish()
    return tuple(blocks)


def _opaque(data: bytes) -> dict[int, bytes]:
    cursor = Cursor(data, "NVIDIA opaque fields")
    fields: dict[int, bytes] = {}
    while cursor.left:
        key = cursor.number(2, "type")
        if key in fields:
            raise DecodeError(f"NVIDIA opaque field {key} is there twice")
        fields[key] = cursor.sized(2, f"field {key}")
    return fields


def _vbios(value: bytes | None, *, is_switch: bool) -> str:
    if value is None:
        raise DecodeError("NVIDIA report has no VBIOS version")
    if is_switch:
        return _text(value, VBIOS_FORM, "BIOS version")
    if len(value) != 8 or any(value[5:]):
        raise DecodeError(f"VBIOS version {value.hex()} is not 5 bytes and 3 zero bytes")
    # A little-endian word and one more byte: 00a50096 01 reads 96.00.A5.00.01.
    return ".".join(f"{one:02X}" for one in (*value[3::-1], value[4]))


def _text(value: bytes, form: re.Pattern[str], name: str) -> str:
    text = value.rstrip(b"\0").decode("ascii", "replace").upper()
    if not form.fullmatch(text):
        raise DecodeError(f"{name} {value[:32].hex()} has another form")
    return text
