"""Pseudo-random streams that the dealer shares with one party: AES-128 in counter mode.

The dealer and party i hold a 32-byte key k_0i. From it HKDF-SHA256 gives, per label and serial
number, one AES key; its keystream, read in order, is that party's halves of one inference.
Reading costs no bytes on the network, which is why only the other party is sent anything.

Invariant: one (key, label, serial) is one stream. A serial is dealt once and used once (see
`ledger`), and the label names the length that it is dealt for. Reading a stream twice gives the
same halves, which is how a party re-derives them.
"""

from __future__ import annotations

import struct
from typing import Final, final

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from veilrun.mpc.shares import Array, dtype_of, wrap

KEY_BYTES: Final = 32
SEED_BYTES: Final = 16
_BLOCK_BYTES: Final = 16


@final
class Stream:
    """The keystream of one (key, label, serial), from `skip_bytes` on.

    key: 32 secret bytes, k_01 or k_02. label: what the stream is for. serial: of the inference;
    0 for what belongs to the model.
    """

    def __init__(self, key: bytes, label: str, serial: int = 0, *, skip_bytes: int = 0) -> None:
        info = b"veilrun mpc stream " + struct.pack("<Q", serial) + label.encode("ascii")
        derived = HKDF(hashes.SHA256(), 16, salt=None, info=info).derive(key)
        n_blocks, within = divmod(skip_bytes, _BLOCK_BYTES)
        counter = n_blocks.to_bytes(_BLOCK_BYTES, "big")
        self._cipher = Cipher(algorithms.AES(derived), modes.CTR(counter)).encryptor()
        self._cipher.update(bytes(within))

    def __repr__(self) -> str:
        return "Stream(secret)"

    def read(self, n_bytes: int) -> bytes:
        """The next bytes."""
        return self._cipher.update(bytes(n_bytes))

    def uniform(self, shape: tuple[int, ...], bits: int) -> Array:
        """Uniform elements of Z_2^bits."""
        dtype = dtype_of(bits)
        n_values = int(np.prod(shape, dtype=np.int64))
        words = np.frombuffer(self.read(n_values * dtype.itemsize), dtype)
        return wrap(words, bits).reshape(shape)

    def seeds(self, n_seeds: int) -> npt.NDArray[np.uint8]:
        """Roots of point functions: uint8[n_seeds, 16]."""
        words = np.frombuffer(self.read(n_seeds * SEED_BYTES), np.uint8)
        return words.reshape(n_seeds, SEED_BYTES)
