"""What a quote is about: an enclave's report (SGX) or a trust domain's (TDX). Little-endian.

    enclave     384   cpusvn 16, miscselect 4, 12, extended product 16, attributes 16, MRENCLAVE 32,
                      32, MRSIGNER 32, 32, config id 64, product 2, security version 2,
                      config version 2, 42, family id 16, report data 64
    TD 1.0      584   tee_tcb_svn 16, MRSEAM 48, MRSIGNERSEAM 48, seam attributes 8, attributes 8,
                      XFAM 8, MRTD 48, MRCONFIGID 48, MROWNER 48, MROWNERCONFIG 48, RTMR 4 * 48,
                      report data 64
    TD 1.5      648   the same, tee_tcb_svn2 16, MRSERVICETD 48
    TDREPORT   1024   what a TD gets before it is quoted: type 16, cpusvn 16, SHA-384 of the TCB
                      and of the TD's part, report data 64, 32, MAC 32; TCB 239, 17;
                      attributes 8, XFAM 8, MRTD to RTMR as above, service TDs 48, 64

A TDREPORT's MAC can be checked on its own machine only: elsewhere it is worth what a quote says.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from veilrun.attest.claims import Kind
from veilrun.attest.reading import Cursor
from veilrun.errors import DecodeError

ENCLAVE_BYTES: Final = 384
TD_BYTES: Final = 584
TD_15_BYTES: Final = 648
TD_REPORT_BYTES: Final = 1024
_HASH_BYTES: Final = 48
_N_RTMRS: Final = 4
_SGX_DEBUG: Final = 1 << 1
_TD_UNDER_DEBUG: Final = 0xFF
_TDX: Final = 0x81


@dataclass(frozen=True)
class EnclaveReport:
    """An SGX enclave."""

    attributes: bytes
    mr_enclave: bytes
    mr_signer: bytes
    config_id: bytes
    product: int
    security_version: int
    report_data: bytes

    kind = Kind.INTEL_SGX

    @property
    def debug(self) -> bool:
        """Whether the host may read and change the enclave's memory."""
        return bool(self.attributes[0] & _SGX_DEBUG)

    def measurements(self) -> dict[str, str]:
        """As hex; the product, which is a number, too."""
        return {
            "mr_enclave": self.mr_enclave.hex(),
            "mr_signer": self.mr_signer.hex(),
            "attributes": self.attributes.hex(),
            "config_id": self.config_id.hex(),
            "isv_prod_id": f"{self.product:x}",
        }

    def versions(self) -> dict[str, str]:
        """The enclave's own."""
        return {"isv_svn": str(self.security_version)}

    def registers(self) -> dict[int, bytes]:
        """It has none."""
        return {}


@dataclass(frozen=True)
class TdReport:
    """A trust domain. registers: RTMR 0 to 3. service: MRSERVICETD, of TD 1.5."""

    seam: Mapping[str, bytes]
    attributes: bytes
    xfam: bytes
    mrtd: bytes
    owner: Mapping[str, bytes]
    rtmrs: tuple[bytes, ...]
    report_data: bytes
    service: bytes | None = None

    kind = Kind.INTEL_TDX

    @property
    def debug(self) -> bool:
        """Whether the host may look into the domain: any bit of the first byte says so."""
        return bool(self.attributes[0] & _TD_UNDER_DEBUG)

    def measurements(self) -> dict[str, str]:
        """As hex."""
        named = dict(self.seam) | {
            "td_attributes": self.attributes,
            "xfam": self.xfam,
            "mrtd": self.mrtd,
            **self.owner,
        }
        named.update((f"rtmr{at}", value) for at, value in enumerate(self.rtmrs))
        if self.service is not None:
            named["mrservicetd"] = self.service
        return {name: value.hex() for name, value in named.items()}

    def versions(self) -> dict[str, str]:
        """Those of the TDX module are not one number: `tee_tcb_svn` of the measurements."""
        return {}

    def registers(self) -> dict[int, bytes]:
        """RTMR n as register n + 1, as event logs have them."""
        return dict(enumerate(self.rtmrs, 1))

    def same_domain(self, other: TdReport) -> bool:
        """Whether both are of one TD in one state, with the same report data."""
        return all(
            getattr(self, name) == getattr(other, name)
            for name in ("attributes", "xfam", "mrtd", "owner", "rtmrs", "report_data")
        )


def parse_enclave(data: bytes) -> EnclaveReport:
    """The enclave's report in `data`."""
    cursor = Cursor(data, "SGX report")
    cursor.take(48, "cpusvn, miscselect and extended product")
    attributes = cursor.take(16, "attributes")
    mr_enclave = cursor.take(32, "MRENCLAVE")
    cursor.take(32, "reserved")
    mr_signer = cursor.take(32, "MRSIGNER")
    cursor.take(32, "reserved")
    config_id = cursor.take(64, "config id")
    product, version = cursor.number(2, "product"), cursor.number(2, "security version")
    cursor.take(60, "config version and family id")
    report_data = cursor.take(64, "report data")
    cursor.finish()
    return EnclaveReport(
        attributes, mr_enclave, mr_signer, config_id, product, version, report_data
    )


def parse_td(data: bytes) -> TdReport:
    """The trust domain's report in `data`, 1.0 or 1.5 by its length."""
    cursor = Cursor(data, "TD report")
    seam = {
        "tee_tcb_svn": cursor.take(16, "tee_tcb_svn"),
        "mrseam": cursor.take(_HASH_BYTES, "MRSEAM"),
        "mrsignerseam": cursor.take(_HASH_BYTES, "MRSIGNERSEAM"),
        "seam_attributes": cursor.take(8, "seam attributes"),
    }
    attributes, xfam, mrtd, owner, rtmrs = _domain(cursor)
    report_data = cursor.take(64, "report data")
    service = None
    if len(data) == TD_15_BYTES:
        seam["tee_tcb_svn2"] = cursor.take(16, "tee_tcb_svn2")
        service = cursor.take(_HASH_BYTES, "MRSERVICETD")
    cursor.finish()
    return TdReport(seam, attributes, xfam, mrtd, owner, rtmrs, report_data, service)


def parse_tdreport(data: bytes) -> TdReport:
    """The TDREPORT in `data`, whose parts are those that it hashes. It is not authentic by that."""
    cursor = Cursor(data, "TDREPORT")
    cursor.expect(_TDX.to_bytes(1, "little"), "type")
    cursor.take(31, "type and cpusvn")
    tcb_digest = cursor.take(_HASH_BYTES, "SHA-384 of the TCB")
    domain_digest = cursor.take(_HASH_BYTES, "SHA-384 of the domain")
    report_data = cursor.take(64, "report data")
    cursor.take(64, "reserved and MAC")
    tcb = cursor.take(239, "TCB")
    cursor.take(17, "reserved")
    domain = cursor.rest()
    if len(data) != TD_REPORT_BYTES or (
        hashlib.sha384(tcb).digest() != tcb_digest
        or hashlib.sha384(domain).digest() != domain_digest
    ):
        raise DecodeError("TDREPORT: its parts are not those that it hashes")
    attributes, xfam, mrtd, owner, rtmrs = _domain(Cursor(domain, "TDREPORT's domain"))
    return TdReport({}, attributes, xfam, mrtd, owner, rtmrs, report_data)


def _domain(
    cursor: Cursor,
) -> tuple[bytes, bytes, bytes, dict[str, bytes], tuple[bytes, ...]]:
    """attributes, XFAM, MRTD, the owner's values, RTMRs: the same order in all forms."""
    attributes, xfam = cursor.take(8, "attributes"), cursor.take(8, "XFAM")
    mrtd = cursor.take(_HASH_BYTES, "MRTD")
    owner = {
        name: cursor.take(_HASH_BYTES, name) for name in ("mrconfigid", "mrowner", "mrownerconfig")
    }
    rtmrs = tuple(cursor.take(_HASH_BYTES, "RTMR") for _ in range(_N_RTMRS))
    return attributes, xfam, mrtd, owner, rtmrs
