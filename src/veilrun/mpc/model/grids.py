"""The public tables of a model: each function on the grid that its index comes from.

An n-bit index out of a b-bit window counts steps of 2^(b - n). Rounding on the way there is
unbiased, so entry j of a step table holds the function at j steps exactly. A line of a linear
table is fitted to where its entry is used: within a step to either side, most often close by.

The guard marks the outer part of the window, which calibration left free.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt

from veilrun.mpc.profile import Lookups, Profile
from veilrun.mpc.shares import Array, dtype_of
from veilrun.mpc.tables import ExpTable, LinearTable, StepTable, Table

Reals = npt.NDArray[np.float64]
Function = Callable[[Reals], Reals]

GUARD: Final = 0.85
"""Values beyond this part of a window are flagged; calibrated values end well before."""

FACTOR_BITS: Final = 12
"""After the point, of each factor of e^x."""

_SPARE_NATS: Final = 1.8
_ROUND_NATS: Final = 0.2
_EXP_EXTRA_BITS: Final = 2 * FACTOR_BITS + 8
_PROBES: Final = (np.arange(64) + 0.5) / 32 - 1.0
"""Where a line is fitted, in steps from its entry."""

_erf = np.vectorize(math.erf, otypes=[np.float64])


def exp(profile: Profile, window: float, top: float) -> Table:
    """e^s for scores in [-window / 2, window / 2), so that e^top fits the row sums' window, with
    room for sums a few times as large as calibration saw.

    Beyond `top` it no longer grows: a row with such a score is as good as decided.
    """
    how, bits = profile.functions.exp, profile.rings.linear
    steps = _signed_steps(how.index_bits)
    step = window / len(steps)
    # An entry serves a step to either side, so entries up to top + step must not be cut.
    spare = max(_SPARE_NATS, 2 * step + _ROUND_NATS)
    unit = 2.0**profile.windows.row_sum / math.exp(top + spare)
    if not how.low_bits:
        e = np.exp(np.minimum(steps * step, top)) * unit
        return StepTable(_integers(e, bits), bits)
    e = np.exp(np.minimum(steps * step, top + spare - step - _ROUND_NATS)) * unit
    extra = extra_bits(how, bits, is_exp=True)
    return ExpTable(
        _integers(e * 2.0 ** (extra - 2 * FACTOR_BITS), bits + extra),
        step / 2**how.low_bits,
        bits,
        how.low_bits,
        extra,
        FACTOR_BITS,
    )


def extra_bits(how: Lookups, bits: int, *, is_exp: bool = False) -> int:
    """After the point, in a table's entries; looking up ends by dropping them."""
    if not how.low_bits:
        return 0
    if is_exp:
        return _EXP_EXTRA_BITS
    return 16 if bits > 32 else 0  # as far as the dtype of the bare result reaches


def gelu(profile: Profile, window: float) -> Table:
    """GELU on [-window / 2, window / 2)."""
    scale = 2.0**profile.gelu_fraction
    return _signed_grid(
        profile.functions.gelu,
        profile.rings.linear,
        window,
        lambda x: x * (1 + _erf(x / math.sqrt(2))) / 2 * scale,
    )


def head(profile: Profile, window: float, activation: str) -> Table:
    """The classifier's activation on [-window / 2, window / 2)."""
    scale = 2.0**profile.gelu_fraction
    function: Function = np.tanh if activation == "tanh" else lambda x: np.maximum(x, 0)
    return _signed_grid(
        profile.functions.head, profile.rings.linear, window, lambda x: function(x) * scale
    )


def reciprocal(profile: Profile, fraction_bits: int = 0) -> Table:
    """1 / (row sum), such that the shrunk context has the scale of the attention values, and
    that many fraction bits more.
    """
    numerator = 2.0 ** (profile.hidden_shift + profile.wide_shift + fraction_bits)
    return _positive_grid(
        profile.functions.row_sum,
        profile.rings.wide,
        2.0**profile.windows.row_sum,
        lambda s: numerator / s,
    )


def inverse_norm(profile: Profile, n_elements: int, epsilon: float) -> Table:
    """1 / sigma of a row of integers from their sum of squares; epsilon is added to its mean."""
    numerator = 2.0 ** (profile.x_fraction + profile.wide_shift)
    return _positive_grid(
        profile.functions.variance,
        profile.rings.wide,
        2.0**profile.windows.variance,
        lambda s: numerator / np.sqrt(s / n_elements + epsilon),
    )


def _signed_grid(how: Lookups, bits: int, window: float, function: Function) -> Table:
    """A function of a signed number; [-window / 2, window / 2) fills the index."""
    places = _signed_steps(how.index_bits) * (window / 2**how.index_bits)
    outside = np.abs(places) > GUARD * window / 2
    return _table(how, bits, window, function, places, outside)


def _positive_grid(how: Lookups, bits: int, window: float, function: Function) -> Table:
    """A function of a number in [0, window) that grows without bound at 0."""
    step = window / 2**how.index_bits
    places = np.arange(2**how.index_bits) * step

    def bounded(x: Reals) -> Reals:
        return function(np.maximum(x, step / 2))

    return _table(how, bits, window, bounded, places, places > GUARD * window)


def _table(
    how: Lookups,
    bits: int,
    window: float,
    function: Function,
    places: Reals,
    outside: npt.NDArray[np.bool_],
) -> Table:
    if not how.low_bits:
        return StepTable(_integers(function(places), bits), bits, outside.astype(dtype_of(bits)))
    step = window / 2**how.index_bits
    # A double step is used with triangular frequency: the fit gives what is near more weight.
    weights = 1 - np.abs(_PROBES)
    samples = function(places[:, None] + _PROBES * step)
    centre = (samples * weights).sum(1) / weights.sum()
    slope = (samples * _PROBES * weights).sum(1) / (_PROBES**2 * weights).sum()
    extra = extra_bits(how, bits)
    wide = bits + extra
    return LinearTable(
        _integers(centre * 2.0**extra, wide),
        _integers(slope * 2.0 ** (extra - how.low_bits), wide),
        bits,
        how.low_bits,
        extra,
        outside.astype(dtype_of(wide)),
    )


def _signed_steps(n: int) -> Reals:
    """Index -> steps, in two's complement."""
    steps = np.arange(2**n, dtype=np.float64)
    result: Reals = np.where(steps < 2 ** (n - 1), steps, steps - 2**n)
    return result


def _integers(values: Reals, bits: int) -> Array:
    """Rounded, in Z_2^bits."""
    largest = 2.0 ** min(bits, 62)
    whole = np.rint(np.clip(values, -largest, largest)).astype(np.int64)
    return (whole & ((1 << bits) - 1 if bits < 64 else -1)).astype(dtype_of(bits))
