"""Where a node gives evidence of its machine, and for which nonce. GET, answered by a bundle.

GET /veilrun/v1/attestation?nonce=<64 hex digits>
"""

from __future__ import annotations

import re
from typing import Final

from veilrun.errors import DecodeError

ATTESTATION_PATH: Final = "/veilrun/v1/attestation"
NONCE_PARAMETER: Final = "nonce"
NONCE_BYTES: Final = 32
_NONCE: Final = re.compile(r"[0-9a-f]{64}")


def decode_nonce(text: str) -> bytes:
    """The nonce that a client asks for."""
    if not _NONCE.fullmatch(text):
        raise DecodeError(f"{NONCE_PARAMETER} must be 64 lower-case hex digits", NONCE_PARAMETER)
    return bytes.fromhex(text)
