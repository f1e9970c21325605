"""The gates' elementwise steps are the same in the kernel and in numpy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from veilrun.mpc import elementwise, native
from veilrun.mpc.shares import wrap

RNG = np.random.default_rng(3)
SHAPE = (6, 33)
RINGS = [
    (8, 16), (12, 16), (8, 32), (16, 32), (20, 32), (24, 32), (16, 48), (24, 48), (32, 48),
    (8, 64), (16, 64), (24, 64), (32, 64),
]  # fmt: skip


def uniform(bits: int, *shape: int) -> np.ndarray:
    """Elements of Z_2^bits, with the smallest and the largest among them."""
    values = RNG.integers(0, 2**64, shape, dtype=np.uint64)
    values.reshape(-1)[:2] = [0, 2**64 - 1]
    return wrap(values, bits)


def both(step: Callable[..., Any], *operands: Any) -> None:
    kernel = native.load()
    if kernel is None:
        pytest.skip("needs the native kernel, which was not built here")
    results = []
    with pytest.MonkeyPatch.context() as patch:
        for implementation in (kernel, None):
            patch.setattr(native, "KERNEL", implementation)
            result = step(*operands)
            results.append(result if isinstance(result, tuple) else (result,))
    for one, other in zip(*results, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("bits", [3, 12, 16, 20, 24, 32, 48, 64])
def test_shrinking(bits: int) -> None:
    one = uniform(bits, 130, 130)  # large enough for the kernel
    for by in {1, 2, bits // 2, bits - 1}:
        for carry in (True, False):
            both(elementwise.shrink, one, by, bits - by, carry)
            both(elementwise.shrink, one[:, 1:129], by, bits - by, carry)  # not contiguous


@pytest.mark.parametrize(("narrow", "wide"), RINGS)
@pytest.mark.parametrize("is_first", [True, False])
def test_extension_and_what_uses_it(narrow: int, wide: int, is_first: bool) -> None:
    upper = uniform(wide - narrow, *SHAPE), uniform(wide - narrow, *SHAPE)
    both(elementwise.extend, uniform(narrow, *SHAPE), uniform(narrow, *SHAPE), upper, narrow, wide)
    top = RNG.integers(0, 2, SHAPE).astype(np.uint8)
    value = uniform(wide, *SHAPE), uniform(wide, *SHAPE), top
    factor = uniform(wide, 6, 1), uniform(wide, 6, 1)
    rings = (narrow, wide)
    both(elementwise.times, value, factor, (uniform(wide, *SHAPE), upper[0]), rings, is_first)
    both(elementwise.squares, value, (uniform(wide, 6, 1), upper[1]), rings, is_first)
