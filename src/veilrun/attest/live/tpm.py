"""Quotes of this machine's TPM, of hardware or of software, by the programs of `tpm2-tools`.

The attestation key is a primary key of the endorsement hierarchy, with a fixed template: ECDSA
P-256, restricted to what the TPM itself makes. The TPM derives it from a seed that it keeps for
life, so the key, and its fingerprint in policies, outlive restarts, and nothing is stored.

Quoted are all 24 registers of SHA-256; `extraData` is the first half of the report data.

Not covered: a TPM whose endorsement hierarchy has a password; a certificate for the key.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.serialization import load_pem_public_key

from veilrun.attest.binding import SHORT_BYTES
from veilrun.attest.certificates import key_sha256
from veilrun.attest.claims import Kind
from veilrun.attest.live.machine import AttesterError, Made
from veilrun.attest.tpm.evidence import encode_evidence
from veilrun.attest.tpm.quote import N_REGISTERS
from veilrun.errors import UsageError

RESOURCE_MANAGER: Final = "device:/dev/tpmrm0"
_PROGRAMS: Final = ("tpm2_createprimary", "tpm2_quote", "tpm2_flushcontext")
_TIMEOUT_S: Final = 20.0
_REGISTER_BYTES: Final = 32
_TEMPLATE: Final = (
    *("-C", "e", "-g", "sha256", "-G", "ecc256:ecdsa-sha256:null"),
    *("-a", "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|restricted|sign"),
)


class TpmAttester:
    """The TPM at `address`, in the words of `tpm2-tools` (`--tcti`)."""

    def __init__(self, address: str = RESOURCE_MANAGER) -> None:
        """Raises UsageError where the programs are missing."""
        missing = [name for name in _PROGRAMS if shutil.which(name) is None]
        if missing:
            raise UsageError(f"not found: {', '.join(missing)}; install the package tpm2-tools")
        self._address = address

    def key_fingerprint(self) -> str:
        """How policies name the attestation key. Raises AttesterError."""
        with tempfile.TemporaryDirectory() as name:
            pem = self._create_key(Path(name))
            self._run("tpm2_flushcontext", "-t")
        return key_sha256(load_pem_public_key(pem.encode())).hex()

    def evidence(self, report_data: bytes) -> Made:
        """See `Attester`."""
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            key_pem = self._create_key(folder)
            self._run(
                "tpm2_quote",
                *("-c", str(folder / "key"), "-g", "sha256", "-l", "sha256:all"),
                *("-q", report_data[:SHORT_BYTES].hex(), "-m", str(folder / "message")),
                *("-s", str(folder / "signature"), "-o", str(folder / "values"), "-F", "values"),
            )
            self._run("tpm2_flushcontext", "-t")
            message, signature, values = (
                _content(folder / one) for one in ("message", "signature", "values")
            )
        if len(values) != N_REGISTERS * _REGISTER_BYTES:
            raise AttesterError(f"tpm2_quote wrote {len(values)} bytes of registers")
        registers = [
            values[at : at + _REGISTER_BYTES] for at in range(0, len(values), _REGISTER_BYTES)
        ]
        return Made(Kind.TPM, encode_evidence(message, signature, registers, key_pem))

    def _create_key(self, folder: Path) -> str:
        # Without a resource manager nobody else makes room in the TPM.
        self._run("tpm2_flushcontext", "-t")
        self._run(
            "tpm2_createprimary",
            *_TEMPLATE,
            *("-c", str(folder / "key"), "-f", "pem", "-o", str(folder / "public")),
        )
        return _content(folder / "public").decode()

    def _run(self, program: str, *arguments: str) -> None:
        command = [program, "-Q", "-T", self._address, *arguments]
        try:
            done = subprocess.run(  # noqa: S603 - no shell; the address is the operator's
                command, capture_output=True, timeout=_TIMEOUT_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise AttesterError(f"{program} fails: {error}") from error
        if done.returncode:
            why = done.stderr.decode(errors="replace").strip().splitlines()
            detail = why[-1] if why else f"status {done.returncode}"
            raise AttesterError(f"{program} at {self._address}: {detail[:500]}")


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise AttesterError(f"tpm2-tools left no {path.name}") from error
