"""The master key: 32 secret bytes from which every other secret follows, and its file.

Derivation: `HKDF-SHA256(master, salt="veilrun/1", info=label)` gives the 256-bit key of a
ChaCha20 keystream; permutations, signs, normals and bytes are read from that stream. A label
is a list of texts, length-prefixed, so no two lists collide. Same key and same label: same
secret, on every machine.

Key file (JSON, mode 0600): scrypt turns the passphrase into the key of ChaCha20-Poly1305,
which seals the 32 bytes; everything else in the file is authenticated with them.

Covered: a stolen key file without its passphrase; a damaged or edited key file.
Not covered: a weak passphrase, a process that can read this one's memory.
"""

from __future__ import annotations

import base64
import json
import os
import stat
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from veilrun import atomic
from veilrun.errors import DecodeError, KeyFileError, UsageError
from veilrun.wire import fields
from veilrun.wire.fields import Fields

KEY_BYTES: Final = 32
SCRYPT_LOG2_N: Final = 17
"""Memory-hard cost: 2**17 blocks of 1 KiB, 128 MiB; OWASP's recommendation for scrypt."""

_FORMAT: Final = "veilrun-key"
_VERSION: Final = 1
_HKDF_SALT: Final = b"veilrun/1"
_LOG2_N_LIMITS: Final = (10, 20)  # a damaged file must not ask for gigabytes


class MasterKey:
    """32 secret bytes. Never shown, never compared by `==`, never pickled."""

    __slots__ = ("_secret",)

    def __init__(self, secret: bytes) -> None:
        if len(secret) != KEY_BYTES:
            raise UsageError(f"a master key has {KEY_BYTES} bytes, not {len(secret)}")
        self._secret = bytes(secret)

    @classmethod
    def generate(cls) -> MasterKey:
        """A new key from the operating system's randomness."""
        return cls(os.urandom(KEY_BYTES))

    def derive(self, *label: str) -> bytes:
        """32 bytes for the purpose that `label` names; unrelated to those of any other label."""
        info = b"".join(struct.pack("<I", len(one)) + one for one in map(str.encode, label))
        return HKDF(SHA256(), KEY_BYTES, _HKDF_SALT, info).derive(self._secret)

    def stream(self, *label: str) -> SecretStream:
        """The endless stream of secret numbers for the purpose that `label` names."""
        return SecretStream(self.derive(*label))

    def __repr__(self) -> str:
        return "MasterKey(<secret>)"

    def __reduce__(self) -> Any:
        raise TypeError("a master key is never serialised except by save_key")


class SecretStream:
    """Secret numbers from a ChaCha20 keystream; reading order is part of the meaning."""

    __slots__ = ("_encryptor",)

    def __init__(self, key: bytes) -> None:
        # One key makes one stream, so counter and nonce can start at zero.
        self._encryptor = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor()

    def uint64(self, n: int) -> npt.NDArray[np.uint64]:
        """[n] uniform uint64."""
        return np.frombuffer(self._encryptor.update(bytes(8 * n)), dtype="<u8")

    def permutation(self, n: int) -> npt.NDArray[np.int64]:
        """[n] int64: a uniform permutation of 0..n-1."""
        while True:
            draws = self.uint64(n)
            order = np.argsort(draws, kind="stable")
            # Equal draws would favour the identity; distinct ones are exactly uniform.
            if n < 2 or np.all(np.diff(draws[order])):
                return order.astype(np.int64)

    def signs(self, n: int) -> npt.NDArray[np.float64]:
        """[n] float64: +1 or -1, equally likely."""
        return 1.0 - 2.0 * (self.uint64(n) >> np.uint64(63)).astype(np.float64)

    def below(self, bound: int, n: int) -> npt.NDArray[np.int64]:
        """[n] int64, uniform on 0..bound-1 up to a bias below bound / 2**64."""
        if not 1 <= bound <= 2**32:
            raise UsageError(f"bound must be from 1 to 2**32, not {bound}")
        return (self.uint64(n) % np.uint64(bound)).astype(np.int64)

    def normal(self, *shape: int) -> npt.NDArray[np.float64]:
        """`shape` float64: independent standard normals, by Box-Muller."""
        n = int(np.prod(shape, dtype=np.int64))
        n_pairs = (n + 1) // 2
        uniform = ((self.uint64(2 * n_pairs) >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
        radius = np.sqrt(-2.0 * np.log(uniform[:n_pairs]))
        angle = 2.0 * np.pi * uniform[n_pairs:]
        pairs = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
        return pairs[:n].reshape(shape)

    def haar(self, n_matrices: int, size: int) -> npt.NDArray[np.float64]:
        """[n_matrices, size, size] float64: uniform (Haar) orthogonal matrices.

        QR of a Gaussian matrix with the signs of R's diagonal moved into Q (Mezzadri, "How to
        generate random matrices from the classical compact groups", 2007).
        """
        q, r = np.linalg.qr(self.normal(n_matrices, size, size))
        return np.asarray(q * np.sign(np.diagonal(r, axis1=1, axis2=2))[:, None, :])

    def __repr__(self) -> str:
        return "SecretStream(<secret>)"


def save_key(
    key: MasterKey, path: Path, passphrase: str, *, scrypt_log2_n: int = SCRYPT_LOG2_N
) -> None:
    """Write `key` under `passphrase`; the file appears whole, with mode 0600.

    Raises:
        UsageError: the file exists (a key is never overwritten), or the passphrase is empty.
        StorageError: the file cannot be written.
    """
    verify_absent(path)
    if not passphrase:
        raise UsageError("the passphrase is empty")
    salt, nonce = os.urandom(16), os.urandom(12)
    header = {
        "format": _FORMAT,
        "version": _VERSION,
        "kdf": {"name": "scrypt", "log2_n": scrypt_log2_n, "r": 8, "p": 1, "salt": _b64(salt)},
        "cipher": {"name": "chacha20-poly1305", "nonce": _b64(nonce)},
    }
    sealing_key = _stretch(passphrase, salt, scrypt_log2_n)
    sealed = ChaCha20Poly1305(sealing_key).encrypt(nonce, key._secret, _canonical(header))
    body = json.dumps({**header, "sealed": _b64(sealed)}, indent=2) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_file(path, body.encode(), mode=0o600)


def verify_absent(path: Path) -> None:
    """Raise UsageError if `path` exists: a key is never overwritten."""
    if path.exists():
        raise UsageError(f"{path} exists already; a key file is never overwritten")


def load_key(path: Path, passphrase: str) -> MasterKey:
    """Open a key file.

    Raises:
        KeyFileError: no such file, not a key file, readable by others, damaged, or the
            passphrase is wrong (the last two cannot be told apart, on purpose).
    """
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        content = path.read_bytes()
    except OSError as error:
        raise KeyFileError(f"cannot read the key file {path}: {error.strerror}") from error
    if mode & 0o077:
        raise KeyFileError(f"{path} can be read by others (mode {mode:04o}); run: chmod 600 {path}")
    try:
        header, salt, nonce, sealed, log2_n = _parse(content)
    except DecodeError as error:
        raise KeyFileError(f"{path} is not a veilrun key file, or is damaged: {error}") from error
    try:
        secret = ChaCha20Poly1305(_stretch(passphrase, salt, log2_n)).decrypt(
            nonce, sealed, _canonical(header)
        )
    except InvalidTag:
        raise KeyFileError(f"wrong passphrase for {path}, or the file is damaged") from None
    return MasterKey(secret)


def _parse(content: bytes) -> tuple[dict[str, Any], bytes, bytes, bytes, int]:
    body = fields.json_object(content)
    top = Fields(body, "")
    top.take("format", fields.one_of(_FORMAT))
    top.take("version", fields.within(_VERSION, _VERSION))
    kdf = Fields(top.take("kdf", fields.mapping), "kdf")
    kdf.take("name", fields.one_of("scrypt"))
    log2_n = kdf.take("log2_n", fields.within(*_LOG2_N_LIMITS))
    kdf.take("r", fields.within(8, 8))
    kdf.take("p", fields.within(1, 1))
    salt = kdf.take("salt", _bytes_of(16))
    kdf.finish()
    cipher = Fields(top.take("cipher", fields.mapping), "cipher")
    cipher.take("name", fields.one_of("chacha20-poly1305"))
    nonce = cipher.take("nonce", _bytes_of(12))
    cipher.finish()
    sealed = top.take("sealed", _bytes_of(KEY_BYTES + 16))
    top.finish()
    header = {name: value for name, value in body.items() if name != "sealed"}
    return header, salt, nonce, sealed, log2_n


def _stretch(passphrase: str, salt: bytes, log2_n: int) -> bytes:
    return Scrypt(salt=salt, length=32, n=2**log2_n, r=8, p=1).derive(passphrase.encode())


def _canonical(header: Mapping[str, Any]) -> bytes:
    return json.dumps(header, sort_keys=True, separators=(",", ":")).encode()


def _b64(value: bytes) -> str:
    return base64.b64encode(value).decode()


def _bytes_of(length: int) -> fields.Reader[bytes]:
    def read(value: Any, name: str) -> bytes:
        try:
            decoded = base64.b64decode(fields.short_text(value, name), validate=True)
        except ValueError as error:
            raise DecodeError(f"{name} is not base64", field=name) from error
        if len(decoded) != length:
            raise DecodeError(f"{name} must hold {length} bytes, not {len(decoded)}", field=name)
        return decoded

    return read
