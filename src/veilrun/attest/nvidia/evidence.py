"""The files that reports come in: hex text, binary, or NVIDIA's JSON list of devices.

The JSON list has an object for each device: `arch`, `certificate` (base64 of its chain as PEM,
device first), `evidence` (base64 of its report), `nonce` (hex), and sometimes `driver_version`,
`vbios_version`, `version`. A file may hold many devices: `split` gives each on its own. The same
device may be in it several times: count by `Claims.identity`, never by entries.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import Any, Final

from cryptography import x509

from veilrun.attest.certificates import MALFORMED
from veilrun.attest.claims import Kind
from veilrun.attest.nvidia.report import MAX_BYTES, DeviceReport, parse_report
from veilrun.errors import DecodeError
from veilrun.wire.fields import Fields, mapping, optional, short_text

_MAX_DEVICES: Final = 128
_MAX_CERTIFICATES: Final = 16
_REPORT_START: Final = b"\x11\xe0\x01\xff"


@dataclass(frozen=True, eq=False)
class DeviceEvidence:
    """One device. certificates: its chain, if the file has it. nonce: as the file states it."""

    report: DeviceReport
    certificates: tuple[x509.Certificate, ...] = ()
    nonce: bytes | None = None

    @property
    def kind(self) -> Kind:
        """GPU or switch."""
        return self.report.kind


def recognise(data: bytes) -> bool:
    """Whether `data` looks like evidence of NVIDIA devices."""
    if data.lstrip()[:1] == b"[":
        return b'"certificate"' in data and b'"evidence"' in data
    return data.startswith(_REPORT_START) or _is_hex(data)


def split(data: bytes) -> tuple[bytes, ...]:
    """Each device of `data` on its own, in a form that `parse` takes."""
    if data.lstrip()[:1] != b"[":
        return (data,)
    return tuple(json.dumps([one]).encode() for one in _entries(data))


def parse(data: bytes) -> DeviceEvidence:
    """The one device in `data`."""
    if data.lstrip()[:1] == b"[":
        entries = _entries(data)
        if len(entries) != 1:
            raise DecodeError(f"{len(entries)} NVIDIA devices in one piece of evidence")
        return _entry(entries[0])
    return DeviceEvidence(parse_report(_unhex(data) if _is_hex(data) else data))


def _is_hex(data: bytes) -> bool:
    return data.lstrip()[:8].lower() == _REPORT_START.hex().encode()


def _unhex(data: bytes) -> bytes:
    if len(data) > 3 * MAX_BYTES:
        raise DecodeError(f"NVIDIA report of {len(data)} characters")
    try:
        return bytes.fromhex(data.decode("ascii"))
    except ValueError as error:
        raise DecodeError("NVIDIA report is not hex") from error


def _entries(data: bytes) -> list[Any]:
    if len(data) > _MAX_DEVICES * MAX_BYTES:
        raise DecodeError(f"NVIDIA evidence of {len(data)} bytes")
    try:
        entries = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DecodeError("NVIDIA evidence is not JSON") from error
    if not isinstance(entries, list) or not 1 <= len(entries) <= _MAX_DEVICES:
        raise DecodeError(f"NVIDIA evidence must be a list of 1 to {_MAX_DEVICES} devices")
    return entries


def _entry(value: Any) -> DeviceEvidence:
    fields = Fields(mapping(value, "device"), "device")
    report = parse_report(fields.take("evidence", _base64))
    certificates = _certificates(fields.take("certificate", _base64))
    nonce = fields.take("nonce", short_text)
    fields.take("arch", short_text)
    for unsigned in ("driver_version", "vbios_version", "version"):
        fields.take(unsigned, optional(short_text), None)
    fields.finish()
    try:
        return DeviceEvidence(report, certificates, bytes.fromhex(nonce))
    except ValueError as error:
        raise DecodeError("device.nonce is not hex") from error


def _base64(value: Any, name: str) -> bytes:
    if not isinstance(value, str) or len(value) > 2 * MAX_BYTES:
        raise DecodeError(f"{name} must be base64 of at most {2 * MAX_BYTES} characters")
    try:
        return base64.b64decode(value, validate=True)
    except ValueError as error:
        raise DecodeError(f"{name} is not base64") from error


def _certificates(pem: bytes) -> tuple[x509.Certificate, ...]:
    try:
        certificates = x509.load_pem_x509_certificates(pem)
    except MALFORMED as error:
        raise DecodeError("device.certificate is not a chain in PEM form") from error
    if len(certificates) > _MAX_CERTIFICATES:
        raise DecodeError(f"device.certificate has over {_MAX_CERTIFICATES} certificates")
    return tuple(certificates)
