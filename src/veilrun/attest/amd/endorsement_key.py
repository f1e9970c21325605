"""Certificates of the keys that sign reports: VCEK, of one chip, and VLEK, of a cloud's chips.

AMD's extensions, under 1.3.6.1.4.1.3704.1:

    3.1 bootloader  3.2 TEE  3.3 SNP  3.8 microcode  3.9 FMC     each an INTEGER, 0 to 255
    4 chip id: 64 bytes, of Turin 8; VCEK only
    5 the cloud: an IA5String; VLEK only
"""

from __future__ import annotations

from typing import Final

from cryptography import x509

_ARC: Final = "1.3.6.1.4.1.3704.1"
_COMPONENTS: Final = {"bootloader": 1, "tee": 2, "snp": 3, "microcode": 8, "fmc": 9}
_CHIP_ID_BYTES: Final = (64, 8)
_IA5_STRING: Final = 0x16
_MALFORMED: Final = (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType)


def has_version(one: x509.Certificate, component: str, version: int) -> bool:
    """Whether the certificate is for this version of a component."""
    content = bytes([version]) if version < 0x80 else bytes([0, version])
    return _extension(one, f"3.{_COMPONENTS[component]}") == bytes([2, len(content)]) + content


def chip_id(one: x509.Certificate) -> bytes | None:
    """As reports have it: 64 bytes."""
    value = _extension(one, "4")
    if value is None or len(value) not in _CHIP_ID_BYTES:
        return None
    return value.ljust(max(_CHIP_ID_BYTES), b"\0")


def cloud(one: x509.Certificate) -> str | None:
    """The name of the cloud."""
    value = _extension(one, "5") or b""
    if value[:2] != bytes([_IA5_STRING, len(value) - 2 & 0x7F]) or not value.isascii():
        return None
    return value[2:].decode("ascii")


def _extension(one: x509.Certificate, name: str) -> bytes | None:
    try:
        found = one.extensions.get_extension_for_oid(x509.ObjectIdentifier(f"{_ARC}.{name}"))
    except (*_MALFORMED, x509.ExtensionNotFound):
        return None
    return found.value.value if isinstance(found.value, x509.UnrecognizedExtension) else None
