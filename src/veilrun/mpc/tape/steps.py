"""The steps of a tape, as `tape.c` reads them."""

from __future__ import annotations

import enum
import struct
from collections.abc import Sequence
from typing import Final


class Op(enum.IntEnum):
    """What a step does; the numbers are those of `tape.c`, which says what each operand is."""

    COPY = 0
    ADD = 1
    SUBTRACT = 2
    MULTIPLY = 3
    NEGATE = 4
    RAISE = 5
    SHRINK = 6
    SUM = 7
    SCALE = 8
    EXTEND = 9
    TIMES = 10
    SQUARES = 11
    MATMUL = 12
    MATMUL_BATCH = 13
    RESIDUAL = 14
    GATHER = 15
    LOOKUP = 16
    LINES = 17
    PACK = 18
    UNPACK = 19
    PACK_SUM = 20
    ADD_PACKED = 21


_N_WORDS, _N_SIZES, _N_PLACES = 7, 4, 12
_STEP: Final = struct.Struct(f"@i{_N_WORDS}i{_N_SIZES}q{_N_PLACES}q")
STEP_BYTES: Final = _STEP.size


def step(op: Op, words: Sequence[int], sizes: Sequence[int], places: Sequence[int]) -> bytes:
    """A `tape_step` of `kernel.h`; what is not named is 0."""
    return _STEP.pack(
        op,
        *_padded(words, _N_WORDS),
        *_padded(sizes, _N_SIZES),
        *_padded(places, _N_PLACES),
    )


def _padded(values: Sequence[int], length: int) -> list[int]:
    return [*values, *[0] * (length - len(values))]
