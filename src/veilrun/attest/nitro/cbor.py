"""CBOR of bounded work and of one meaning, by cbor2.

Refused: tags, more than `_MAX_DEPTH` levels, and all that is not written in the shortest form,
which is checked by writing it again: long lengths, strings in parts, keys that are there twice,
bytes behind the end. A map as a whole may have no length and an end mark instead: the module writes
its document that way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import cbor2

from veilrun.errors import DecodeError

_MAX_DEPTH: Final = 4
_OPEN_MAP, _END, _SHORT_MAP = 0xBF, b"\xff", range(0xA0, 0xB8)


class _NoTags(Mapping[int, Callable[..., Any]]):
    """A decoder for every tag, which refuses it."""

    def __getitem__(self, tag: int) -> Callable[..., Any]:
        raise ValueError(f"tag {tag}")

    def __iter__(self) -> Iterator[int]:
        return iter(())

    def __len__(self) -> int:
        return 0


def read_cbor(data: bytes, what: str) -> Any:
    """The one value in `data`. what: named in errors."""
    try:
        value = cbor2.loads(data, semantic_decoders=_NoTags(), max_depth=_MAX_DEPTH)
        again = write_cbor(value)
    except (cbor2.CBORError, ValueError, TypeError) as error:
        raise DecodeError(f"{what} is not CBOR: {str(error)[:100]}") from error
    if data[:1] == bytes([_OPEN_MAP]) and again[0] in _SHORT_MAP:
        again = data[:1] + again[1:] + _END
    if again != data:
        raise DecodeError(f"{what} is not CBOR in its shortest form")
    return value


def write_cbor(value: Any) -> bytes:
    """`value` in the shortest form."""
    return cbor2.dumps(value)
