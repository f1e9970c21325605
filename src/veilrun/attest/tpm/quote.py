"""What a TPM 2.0 signs when it is asked for a quote (TPMS_ATTEST), and its signature. Big-endian.

    magic          4   ff544347: made inside the TPM, never data from outside
    type           2   8018: quote
    signer           2 + n   name of the key
    extraData        2 + n   the caller's nonce
    clock         17   time (8), resets (4), restarts (4), whether the time is safe (1)
    firmware       8
    selection        4 + n   number of banks; each: hash (2), size (1), bitmap of registers
    digest           2 + n   hash over the selected registers' values, in order

Signature (TPMT_SIGNATURE): scheme (2: 0014 RSASSA, 0018 ECDSA), hash (2), then 2 + n for RSASSA,
r and s of 2 + n each for ECDSA. Azure's files have the n bytes of an RSASSA SHA-256 signature
alone.

Covered: quotes over one bank. Not covered: RSAPSS, other hashes than SHA-256 and SHA-384.

Invariant: bytes give a value or `DecodeError`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from veilrun.attest.reading import Cursor
from veilrun.errors import DecodeError

START: Final = bytes.fromhex("ff5443478018")
N_REGISTERS: Final = 24
MAX_BYTES: Final = 1024
_SELECTION_BYTES: Final = (3, 4)
_HASHES: Final[Mapping[int, str]] = {0x000B: "sha256", 0x000C: "sha384"}
_RSASSA, _ECDSA, _SHA256 = 0x0014, 0x0018, 0x000B
_RAW_RSA_BYTES: Final = (256, 384, 512)
_SIGNED_WITH: Final[Mapping[str, hashes.HashAlgorithm]] = {
    "sha256": hashes.SHA256(),
    "sha384": hashes.SHA384(),
}


@dataclass(frozen=True, slots=True)
class Quote:
    """signed: all of it. bank: hash of the registers. selected: their numbers, rising."""

    signed: bytes
    nonce: bytes
    firmware: str
    bank: str
    selected: tuple[int, ...]
    digest: bytes


@dataclass(frozen=True, slots=True)
class QuoteSignature:
    """algorithm: of its hash. parts: one for RSASSA, r and s for ECDSA."""

    algorithm: str
    parts: tuple[bytes, ...]

    def fits(self, key: PublicKeyTypes, signed: bytes) -> bool:
        """Whether `key` has signed these bytes."""
        algorithm = _SIGNED_WITH[self.algorithm]
        try:
            if isinstance(key, rsa.RSAPublicKey) and len(self.parts) == 1:
                key.verify(self.parts[0], signed, padding.PKCS1v15(), algorithm)
                return True
            if isinstance(key, ec.EllipticCurvePublicKey) and len(self.parts) == 2:
                r, s = (int.from_bytes(part, "big") for part in self.parts)
                key.verify(encode_dss_signature(r, s), signed, ec.ECDSA(algorithm))
                return True
        except (InvalidSignature, UnsupportedAlgorithm, ValueError):
            return False
        return False


def parse_quote(data: bytes) -> Quote:
    """The quote in `data`, see above."""
    if len(data) > MAX_BYTES:
        raise DecodeError(f"TPM quote of {len(data)} bytes is over {MAX_BYTES}")
    cursor = Cursor(data, "TPM quote", "big")
    cursor.expect(START, "magic and type")
    cursor.sized(2, "signer")
    nonce = cursor.sized(2, "extraData")
    cursor.take(16, "clock")
    if cursor.number(1, "safe") > 1:
        raise DecodeError("TPM quote: whether its clock is safe is neither 0 nor 1")
    firmware = cursor.take(8, "firmware")
    n_banks = cursor.number(4, "number of banks")
    if n_banks != 1:
        raise DecodeError(f"TPM quote over {n_banks} banks of registers, not over one")
    bank, selected = _selection(cursor)
    digest = cursor.sized(2, "digest")
    cursor.finish()
    return Quote(data, nonce, _version(firmware), bank, selected, digest)


def parse_signature(data: bytes) -> QuoteSignature:
    """The signature in `data`, see above."""
    if len(data) in _RAW_RSA_BYTES:
        return QuoteSignature("sha256", (data,))
    if len(data) > MAX_BYTES:
        raise DecodeError(f"TPM signature of {len(data)} bytes is over {MAX_BYTES}")
    cursor = Cursor(data, "TPM signature", "big")
    scheme = cursor.number(2, "scheme")
    if scheme not in (_RSASSA, _ECDSA):
        raise DecodeError(f"TPM signature: scheme {scheme:04x} is neither RSASSA nor ECDSA")
    algorithm = _hash(cursor, "hash")
    n_parts = 1 if scheme == _RSASSA else 2
    parts = tuple(cursor.sized(2, "signature") for _ in range(n_parts))
    cursor.finish()
    return QuoteSignature(algorithm, parts)


def digest_of(values: Mapping[int, bytes], selected: tuple[int, ...], algorithm: str) -> bytes:
    """What a quote says of these registers' values; all that are selected must be there."""
    return hashlib.new(algorithm, b"".join(values[number] for number in selected)).digest()


def _selection(cursor: Cursor) -> tuple[str, tuple[int, ...]]:
    bank = _hash(cursor, "hash of the bank")
    size = cursor.number(1, "size of the selection")
    if size not in _SELECTION_BYTES:
        raise DecodeError(f"TPM quote: a selection of {size} bytes")
    bitmap = int.from_bytes(cursor.take(size, "selection"), "little")
    if not bitmap or bitmap >> N_REGISTERS:
        raise DecodeError(f"TPM quote: selection {bitmap:x} is of no register or of unknown ones")
    return bank, tuple(number for number in range(N_REGISTERS) if bitmap >> number & 1)


def _hash(cursor: Cursor, name: str) -> str:
    number = cursor.number(2, name)
    if number not in _HASHES:
        raise DecodeError(f"TPM evidence: {name} {number:04x} is neither SHA-256 nor SHA-384")
    return _HASHES[number]


def _version(firmware: bytes) -> str:
    """Four numbers of two bytes each."""
    return ".".join(str(int.from_bytes(firmware[at : at + 2], "big")) for at in range(0, 8, 2))
