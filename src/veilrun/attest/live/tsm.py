"""Reports of a confidential VM by the kernel's one interface for them, configfs-tsm.

Kernel 6.7 and newer; Documentation/ABI/testing/configfs-tsm of Linux. Steps of `evidence`:
1. Make a folder of our own in /sys/kernel/config/tsm/report; `provider` in it names the driver.
2. Write the 64 bytes to `inblob`.
3. Read `outblob` (the report or quote) and `auxblob` (SNP: the chip's certificates).
4. `generation` counts writes to the folder: ours must have been the only one.
5. Remove the folder.

Certificates of SNP are a table: id (16), offset (4), size (4) each, zeros at its end, then their
DER or PEM bytes; little-endian.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from veilrun.attest.claims import Kind
from veilrun.attest.live.machine import AttesterError, Made
from veilrun.attest.reading import Cursor
from veilrun.errors import DecodeError

REPORTS: Final = Path("/sys/kernel/config/tsm/report")
_PROVIDERS: Final = {Kind.INTEL_TDX: "tdx_guest", Kind.AMD_SEV_SNP: "sev_guest"}
_INPUT_BYTES: Final = 64
_MAX_CERTIFICATES: Final = 16


class TsmAttester:
    """Intel TDX or AMD SEV-SNP. folder: where the kernel has the interface."""

    def __init__(self, kind: Kind, folder: Path = REPORTS) -> None:
        self._kind, self._folder = kind, folder

    def evidence(self, report_data: bytes) -> Made:
        """See `Attester`; steps as above."""
        if len(report_data) != _INPUT_BYTES:
            raise ValueError(f"report data has {_INPUT_BYTES} bytes, not {len(report_data)}")
        try:
            # 1. and 5. a folder
            with self._entry() as entry:
                provider = (entry / "provider").read_text().strip()
                if provider != _PROVIDERS[self._kind]:
                    raise AttesterError(f"the kernel reports by {provider}, not as {self._kind}")
                before = int((entry / "generation").read_text())
                # 2. input
                (entry / "inblob").write_bytes(report_data)
                # 3. output
                report = (entry / "outblob").read_bytes()
                table = self._certificates(entry)
                # 4. generation
                after = int((entry / "generation").read_text())
        except (OSError, ValueError) as error:
            raise AttesterError(f"no report from {self._folder}: {error}") from error
        if after != before + 1:
            raise AttesterError(f"another program wrote to our report: {before} to {after}")
        return Made(self._kind, report, table)

    @contextmanager
    def _entry(self) -> Iterator[Path]:
        entry = self._folder / f"veilrun-{uuid.uuid4().hex}"
        entry.mkdir()
        try:
            yield entry
        finally:
            entry.rmdir()

    def _certificates(self, entry: Path) -> tuple[bytes, ...]:
        if self._kind is not Kind.AMD_SEV_SNP:
            return ()
        try:
            data = (entry / "auxblob").read_bytes()
        except OSError:  # the host gives none; verifiers may have them from elsewhere
            return ()
        try:
            return certificates_of(data)
        except DecodeError as error:
            raise AttesterError(str(error)) from error


def certificates_of(table: bytes) -> tuple[bytes, ...]:
    """The certificates in a table of the form above; an empty one has none."""
    cursor = Cursor(table, "certificate table")
    found: list[bytes] = []
    while table:
        guid = cursor.take(16, "id")
        offset, size = cursor.number(4, "offset"), cursor.number(4, "size")
        if not any(guid):
            break
        if len(found) == _MAX_CERTIFICATES or not size or offset + size > len(table):
            raise DecodeError("certificate table: too many entries, or one outside of it")
        found.append(table[offset : offset + size])
    return tuple(found)
