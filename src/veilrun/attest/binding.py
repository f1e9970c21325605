"""How evidence that a veilrun node makes is tied to one connection, one model and its GPUs.

A machine puts 64 bytes of its choice into its evidence (`report_data`). A node takes

    SHA-512 of: "veilrun-attestation/1", nonce, SHA-256 of its TLS public key
    (SubjectPublicKeyInfo, DER), Merkle root of the weights it serves, SHA-256 of the machine's
    GPU evidence (empty without GPUs)

each field with its length before it (4 bytes, big-endian), and states the four values beside its
evidence (`Binding`). A verifier recomputes the hash from the stated values, then compares each with
what it demands, and so can name the one that differs.

Where there is room for less (extraData of a TPM quote), the first 32 bytes are used: SHA-512 cut to
256 bits is as hard to collide with as SHA-256.

Covered: evidence of another time, connection, model or GPU. Not covered: that the node uses these
weights for an answer; measurements say which software promises that.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from veilrun.attest.claims import Claims, Kind
from veilrun.errors import DecodeError
from veilrun.wire.fields import Fields, Reader, mapping

SHORT_BYTES: Final = 32
_DOMAIN: Final = b"veilrun-attestation/1"
_HASH_BYTES: Final = 32
NONCE_BYTES: Final = range(8, 65)  # as in entity attestation tokens


@dataclass(frozen=True, slots=True)
class Binding:
    """What the evidence is about, as the node states it; nothing until it is recomputed."""

    nonce: bytes
    tls_key_sha256: bytes
    weights_root: bytes
    gpu_evidence_sha256: bytes = b""

    def report_data(self) -> bytes:
        """The 64 bytes that evidence about this has."""
        return report_data(
            self.nonce, self.tls_key_sha256, self.weights_root, self.gpu_evidence_sha256
        )

    def is_in(self, claims: Claims) -> bool:
        """Whether verified evidence is about this."""
        expected = self.report_data()
        if claims.kind is Kind.TPM:
            return claims.nonce == expected[:SHORT_BYTES]
        return claims.report_data == expected


def report_data(
    nonce: bytes, tls_key_sha256: bytes, weights_root: bytes, gpu_evidence_sha256: bytes = b""
) -> bytes:
    """The 64 bytes for these values, see above."""
    total = hashlib.sha512()
    for field in (_DOMAIN, nonce, tls_key_sha256, weights_root, gpu_evidence_sha256):
        total.update(len(field).to_bytes(4, "big") + field)
    return total.digest()


def gpu_digest(pieces: Iterable[bytes]) -> bytes:
    """SHA-256 of the GPU evidence in a bundle: over the SHA-256 of each piece, in their order.

    A piece that is there twice counts once; empty without any.
    """
    digests = [hashlib.sha256(piece).digest() for piece in dict.fromkeys(pieces)]
    return hashlib.sha256(b"".join(digests)).digest() if digests else b""


def binding_to_json(binding: Binding) -> dict[str, str]:
    """As bundles have it."""
    return {
        "nonce": binding.nonce.hex(),
        "tls_key_sha256": binding.tls_key_sha256.hex(),
        "weights_root": binding.weights_root.hex(),
        "gpu_evidence_sha256": binding.gpu_evidence_sha256.hex(),
    }


def binding_from_json(value: Any, name: str) -> Binding:
    """Read `binding_to_json`."""
    fields = Fields(mapping(value, name), name)
    binding = Binding(
        nonce=fields.take("nonce", _hex(NONCE_BYTES)),
        tls_key_sha256=fields.take("tls_key_sha256", _hex(_HASH_BYTES)),
        weights_root=fields.take("weights_root", _hex(_HASH_BYTES)),
        gpu_evidence_sha256=fields.take("gpu_evidence_sha256", _hex(0, _HASH_BYTES)),
    )
    fields.finish()
    return binding


def _hex(*lengths: int | range) -> Reader[bytes]:
    def read(value: Any, name: str) -> bytes:
        try:
            data = bytes.fromhex(value)
        except (TypeError, ValueError) as error:
            raise DecodeError(f"{name} is not hex", field=name) from error
        if data.hex() != value or not any(
            len(data) in one if isinstance(one, range) else len(data) == one for one in lengths
        ):
            raise DecodeError(f"{name} has {len(data)} bytes or is no lower-case hex", field=name)
        return data

    return read
