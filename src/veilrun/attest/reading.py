"""Reading binary evidence: every field is there in full, or the bytes do not parse.

Invariant: a `Cursor` raises `DecodeError` and nothing else, and never allocates more than it was
given. Offsets in messages count from where the cursor began.
"""

from __future__ import annotations

from typing import Literal

from veilrun.errors import DecodeError

ByteOrder = Literal["little", "big"]


class Cursor:
    """Reads fields one after the other. what: named in errors. order: of all integers."""

    def __init__(self, data: bytes, what: str, order: ByteOrder = "little") -> None:
        self._data, self._what, self._order = data, what, order
        self._at = 0

    @property
    def at(self) -> int:
        """Bytes read so far."""
        return self._at

    @property
    def left(self) -> int:
        """Bytes not read yet."""
        return len(self._data) - self._at

    def take(self, n_bytes: int, name: str) -> bytes:
        """The next `n_bytes` bytes."""
        if n_bytes < 0 or n_bytes > self.left:
            raise DecodeError(
                f"{self._what}: {name} needs {n_bytes} bytes at {self._at}, there are {self.left}"
            )
        self._at += n_bytes
        return self._data[self._at - n_bytes : self._at]

    def number(self, n_bytes: int, name: str) -> int:
        """The next unsigned integer."""
        return int.from_bytes(self.take(n_bytes, name), self._order)

    def sized(self, length_bytes: int, name: str, at_most: int = 1 << 20) -> bytes:
        """A length of `length_bytes` bytes, then as many bytes."""
        length = self.number(length_bytes, f"length of {name}")
        if length > at_most:
            raise DecodeError(f"{self._what}: {name} of {length} bytes is over {at_most}")
        return self.take(length, name)

    def expect(self, value: bytes, name: str) -> None:
        """The next bytes are `value`."""
        found = self.take(len(value), name)
        if found != value:
            raise DecodeError(f"{self._what}: {name} is {found.hex()}, not {value.hex()}")

    def rest(self) -> bytes:
        """Everything that is left."""
        return self.take(self.left, "the rest")

    def finish(self) -> None:
        """Nothing is left."""
        if self.left:
            raise DecodeError(f"{self._what}: {self.left} bytes follow its end at {self._at}")
