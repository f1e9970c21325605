"""Whole numbers in floats: rounding by chance, step tables, and matrices of signs and levels.

What `binary_network` is made of. Gradients pass through rounding as if it were not there, through
a look-up with the slope of its table, and through signs to the latent weights behind them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from veilrun.mpc.model.binary import BinaryMatrix, WholeMatrix
from veilrun.mpc.shares import signed
from veilrun.mpc.tables import StepTable

# --- rounding, looking up, signs ----------------------------------------------------------------


class Rounding:
    """Where the chance comes from: noise in (0, 1], or always 1/2."""

    def __init__(self, seed: int | None, pool_size: int = 1 << 22) -> None:
        self._half = torch.tensor(0.5)
        self._pool: Tensor | None = None
        if seed is not None:
            self._generator = torch.Generator().manual_seed(seed)
            self._pool = 1 - torch.rand(pool_size, generator=self._generator)

    def noise(self, x: Tensor) -> Tensor:
        """As many numbers as x has; drawing new ones costs more than the network does."""
        if self._pool is None:
            return self._half.to(x.dtype)
        n = x.numel()
        if n > len(self._pool):
            return 1 - torch.rand(x.shape, generator=self._generator)
        start = int(torch.randint(len(self._pool) - n + 1, (), generator=self._generator))
        return self._pool[start : start + n].view(x.shape)


class Rounded(torch.autograd.Function):
    """x times a scale, to one of the two whole numbers around it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float, noise: Tensor) -> Tensor:
        ctx.scale = scale
        return torch.add(noise, x, alpha=scale).floor_()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return gradients[0] * ctx.scale, None, None


class _LookedUp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, z: Tensor, scale: float, noise: Tensor, values: Tensor, slopes: Tensor
    ) -> Tensor:
        place = torch.add(noise, z, alpha=scale).floor_()
        place = place.clamp_(0, len(values) - 1).to(torch.int32)
        ctx.save_for_backward(place, slopes)
        ctx.scale = scale
        return values.index_select(0, place.view(-1)).view(place.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        place, slopes = ctx.saved_tensors
        slope = slopes.index_select(0, place.view(-1)).view(place.shape)
        return gradients[0] * slope * ctx.scale, None, None, None, None


class _Signs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, unit: Tensor, share: float) -> Tensor:
        ctx.save_for_backward(unit)
        level = levels(weight, unit)
        signs = torch.where(weight >= 0, level, -level)
        if share < 1:
            signs = torch.lerp(weight * unit, signs, share)
        return signs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (unit,) = ctx.saved_tensors
        return gradients[0] * unit, None, None


def levels(weight: Tensor, unit: Tensor) -> Tensor:
    """Of each column: the mean magnitude, whole, at least 1."""
    return (weight.abs().mean(0) * unit).round().clamp(min=1)


# --- modules ------------------------------------------------------------------------------------


class Table(nn.Module):
    """A step table, for values of which `bits` are looked at.

    What is beyond the window finds its end, where the protocol's would come in on the other side.
    """

    values: Tensor
    slopes: Tensor

    def __init__(self, table: Any, bits: int, *, is_signed: bool = True) -> None:
        super().__init__()
        if not isinstance(table, StepTable):
            raise TypeError("this profile has step tables only")
        values = signed(table.values, table.bits).astype(np.float32)
        self.scale = len(values) * 2.0**-bits
        self.start = len(values) // 2 if is_signed else 0  # the place of 0, in order of the inputs
        values = np.roll(values, self.start)
        self.register_buffer("values", torch.tensor(values))
        self.register_buffer("slopes", torch.tensor(np.gradient(values)))

    def forward(self, z: Tensor, rounding: Rounding) -> Tensor:
        noise = rounding.noise(z) + self.start
        return _LookedUp.apply(z, self.scale, noise, self.values, self.slopes)


class Linear(nn.Module):
    """x W + b. weight, bias: real. unit: [n_out], integers per 1 of the output. steps: of x."""

    unit: Tensor

    def __init__(
        self, weight: np.ndarray, bias: np.ndarray, unit: np.ndarray | float, steps: float
    ) -> None:
        super().__init__()
        units = np.broadcast_to(unit, bias.shape).astype(np.float32)
        self.weight = nn.Parameter(torch.tensor(np.ascontiguousarray(weight), dtype=torch.float32))
        self.bias = nn.Parameter(torch.tensor(bias, dtype=torch.float32))
        self.register_buffer("unit", torch.tensor(units))
        self.steps = steps

    def whole_bias(self) -> Tensor:
        return Rounded.apply(self.bias * self.unit, 1.0, torch.tensor(0.5, dtype=self.unit.dtype))


class SignLinear(Linear):
    """The weights become signs and levels."""

    def forward(self, x: Tensor, share: float) -> Tensor:
        signs = _Signs.apply(self.weight, self.unit / self.steps, share)
        if x.dtype == torch.float32:  # whole numbers to 256 are exact in bfloat16
            product = (x.bfloat16() @ signs.bfloat16()).float()
        else:
            product = x @ signs
        return product + self.whole_bias()

    def export(self) -> BinaryMatrix:
        return BinaryMatrix(
            (self.weight >= 0).numpy(force=True),
            whole(levels(self.weight, self.unit / self.steps)),
            whole(self.whole_bias()),
        )


class WholeLinear(Linear):
    """The weights become whole numbers."""

    def whole_weight(self) -> Tensor:
        half = torch.tensor(0.5, dtype=self.unit.dtype)
        return Rounded.apply(self.weight * (self.unit / self.steps), 1.0, half)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.whole_weight() + self.whole_bias()

    def export(self) -> WholeMatrix:
        return WholeMatrix(whole(self.whole_weight()), whole(self.whole_bias()))


class Gain(nn.Module):
    """x times a whole number for each column."""

    def __init__(self, gain: np.ndarray, unit: float) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain, dtype=torch.float32))
        self.unit = unit

    def whole_gain(self) -> Tensor:
        gain = self.gain
        return Rounded.apply(gain, self.unit, torch.tensor(0.5, dtype=gain.dtype))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.whole_gain()


def whole(x: Tensor) -> np.ndarray:
    """Integers from a float tensor that holds such."""
    return x.numpy(force=True).astype(np.int64)
