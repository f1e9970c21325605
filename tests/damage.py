"""Bytes from outside, damaged as transports and attackers damage them."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from veilrun.errors import DecodeError, VerificationError

REFUSED = (DecodeError, VerificationError)
"""All that damaged evidence may cause."""


def flipped(content: bytes, at: int, bit: int = 0) -> bytes:
    """`content` with one bit of byte `at` turned."""
    return content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :]


def with_damage(source: st.DataObject, good: bytes) -> bytes:
    """`good`, cut, flipped, or with bytes added or gone, one to three times."""
    content = bytearray(good)
    for _ in range(source.draw(st.integers(1, 3))):
        at = source.draw(st.integers(0, max(len(content) - 1, 0)))
        match source.draw(st.sampled_from(["cut", "flip", "insert", "drop"])):
            case "cut":
                del content[at:]
            case "flip" if content:
                content[at] ^= source.draw(st.integers(1, 255))
            case "insert":
                content[at:at] = source.draw(st.binary(min_size=1, max_size=16))
            case _:
                del content[at : at + source.draw(st.integers(1, 64))]
    return bytes(content)


def examples(n: int) -> settings:
    """`n` of them, the same in every run."""
    return settings(
        max_examples=n,
        derandomize=True,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
