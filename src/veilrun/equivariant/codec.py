"""Plain token ids to cipher ids and back: one secret permutation of the vocabulary.

Covered: who sees cipher ids alone cannot read them with the public tokenizer.
Not covered: equal tokens have equal cipher ids, so counts and repetitions show.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from veilrun.errors import UsageError, VerificationError
from veilrun.keys import MasterKey

SCHEME: Final = "ee/1"
"""First word of every label: a change of any derivation gets a new number."""


def vocabulary_order(
    key: MasterKey, digest: str, family: str, vocab_size: int
) -> npt.NDArray[np.int64]:
    """[vocab_size] int64: entry c is the plain id whose cipher id is c."""
    return key.stream(SCHEME, digest, family, "-", "vocabulary").permutation(vocab_size)


def fingerprint(key: MasterKey, digest: str, family: str) -> str:
    """32 hex digits that name a key and a model, and prove neither to who lacks the key."""
    return key.derive(SCHEME, digest, family, "-", "fingerprint")[:16].hex()


class Codec:
    """The secret permutation of one key and one model. `repr` shows neither."""

    __slots__ = ("_to_cipher", "_to_plain", "fingerprint", "vocab_size")

    def __init__(self, key: MasterKey, digest: str, family: str, vocab_size: int) -> None:
        order = vocabulary_order(key, digest, family, vocab_size)
        self.vocab_size = vocab_size
        self.fingerprint = fingerprint(key, digest, family)
        self._to_plain: list[int] = order.tolist()
        self._to_cipher: list[int] = np.argsort(order).tolist()

    def encode(self, ids: Sequence[int]) -> tuple[int, ...]:
        """Plain ids to cipher ids. Raises UsageError on an id outside the vocabulary."""
        self._check(ids, UsageError)
        return tuple(self._to_cipher[one] for one in ids)

    def decode(self, ids: Sequence[int]) -> tuple[int, ...]:
        """Cipher ids to plain ids. Raises VerificationError on an id outside the vocabulary."""
        self._check(ids, VerificationError)
        return tuple(self._to_plain[one] for one in ids)

    def encode_one(self, plain_id: int) -> int:
        """One plain id to its cipher id."""
        return self.encode((plain_id,))[0]

    def decode_one(self, cipher_id: int) -> int:
        """One cipher id to its plain id."""
        return self.decode((cipher_id,))[0]

    def _check(self, ids: Iterable[int], fault: type[UsageError | VerificationError]) -> None:
        for one in ids:
            if not 0 <= one < self.vocab_size:
                raise fault(f"token id {one} is outside the vocabulary of {self.vocab_size}")

    def __repr__(self) -> str:
        return f"Codec(vocab_size={self.vocab_size}, fingerprint={self.fingerprint!r})"
