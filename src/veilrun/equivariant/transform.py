"""One tensor under its job: the plain checkpoint's tensor in, the encrypted one out.

W' = A_out fold(W) A_into^-1, computed in float64 for float32 weights and in float32 for
16-bit ones, and rounded once. Matrices go through in slabs that fit a processor's cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

import torch
from torch import Tensor

from veilrun.checkpoint.folder import Checkpoint
from veilrun.equivariant.covariant import blurring
from veilrun.equivariant.families.table import Axis, Embedding, HeadNorm, Linear, Norm
from veilrun.equivariant.maps import Map, Permute
from veilrun.equivariant.plan import Fold, Job
from veilrun.equivariant.spaces import Spaces
from veilrun.equivariant.tensors import TORCH_DTYPES, read_matrix, read_rows, read_vector

SLAB_BYTES: Final = 1 << 19
"""Size of what is worked on at once. It fits a core's second-level cache, and the allocator
reuses its memory; twice as much goes back to the system after each step, which costs as much
as the arithmetic."""

Action = Callable[[Tensor], Tensor]
Rows = Callable[[int, int], Tensor]


def sealed_shape(checkpoint: Checkpoint, job: Job, spaces: Spaces) -> tuple[int, ...]:
    """The shape of `job`'s encrypted tensor: its source's, but for a stream that got longer."""
    shape = checkpoint[job.source].shape
    axes: tuple[Axis, ...]
    match job.row:
        case Linear() as row if job.found.part == "weight":
            axes = (row.into, row.out) if row.transposed else (row.out, row.into)
        case Linear() as row:
            axes = (row.out,)
        case Embedding() as row:
            axes = (row.index, "residual")
        case Norm():
            axes = ("residual",)
        case _:
            return shape
    return tuple(spaces.sealed_size(axis, n) for axis, n in zip(axes, shape, strict=True))


def transform(checkpoint: Checkpoint, job: Job, spaces: Spaces) -> Tensor:
    """The encrypted tensor of `job`, in the dtype of its source."""
    info = checkpoint[job.source]
    dtype = TORCH_DTYPES[info.dtype]
    if job.constant is not None:
        return torch.full(sealed_shape(checkpoint, job, spaces), job.constant, dtype=dtype)
    match job.row:
        case Linear() as row if job.found.part == "weight":
            return _weight(checkpoint, job, row, spaces)
        case Linear() as row:
            return _bias(checkpoint, job, row, spaces).to(dtype)
        case Embedding() as row:
            index = spaces.of(row.index, info.shape[0], None, None)
            residual = spaces.of("residual", info.shape[1], None, None)
            rows = _rows_of(checkpoint, job)
            blur = _noise(checkpoint, job, spaces, rows, _as_it_is)
            columns = _in_turn(blur, residual.write)
            shape = sealed_shape(checkpoint, job, spaces)
            return _matrix(rows, info.shape, shape, dtype, index, columns)
        case Norm():
            residual = spaces.of("residual", info.shape[0], None, None)
            return _carry(residual, read_vector(checkpoint, job.source)).to(dtype)
        case HeadNorm() as row:
            offset = 1.0 if row.kind == "rms+1" else 0.0
            gain = read_vector(checkpoint, job.source) + offset
            gain_map = spaces.head_gain(row.axis, job.found.layer)
            return (gain_map.write(gain[:, None])[:, 0] - offset).to(dtype)
        case _:
            raise ValueError(f"{job.source} has no transform")


def _weight(checkpoint: Checkpoint, job: Job, row: Linear, spaces: Spaces) -> Tensor:
    info, found = checkpoint[job.source], job.found
    n_out, n_into = reversed(info.shape) if row.transposed else info.shape
    out = spaces.of(row.out, n_out, found.layer, found.expert)
    into = spaces.of(row.into, n_into, found.layer, found.expert)
    fold: Action = _as_it_is
    if job.fold is not None:
        fold = _folding(checkpoint, job.fold, bare=not job.has_bias)
    rows: Rows = _rows_of(checkpoint, job)
    if row.transposed:
        whole = read_matrix(checkpoint, job.source).t()
        rows = lambda start, stop: whole[start:stop]  # noqa: E731
    columns = _in_turn(fold, _noise(checkpoint, job, spaces, rows, fold), into.read)
    sealed = sealed_shape(checkpoint, job, spaces)
    shape = sealed[::-1] if row.transposed else sealed
    result = _matrix(rows, (n_out, n_into), shape, TORCH_DTYPES[info.dtype], out, columns)
    return result.t().contiguous() if row.transposed else result


def _noise(checkpoint: Checkpoint, job: Job, spaces: Spaces, rows: Rows, before: Action) -> Action:
    """The noise of a covariant copy on its two ends, once `before` has been done; else nothing."""
    match job.row:
        case Embedding(index="vocabulary"):
            amount = spaces.noise.embedding if spaces.noise else 0.0
        case Linear(out="vocabulary"):
            amount = spaces.noise.head if spaces.noise else 0.0
        case _:
            amount = 0.0
    if amount == 0.0:
        return _as_it_is
    n_rows, n_columns = checkpoint[job.source].shape
    total = squares = 0.0
    for start, stop in _slabs(n_rows, n_columns * 8):
        slab = before(rows(start, stop).t().double())
        total, squares = total + float(slab.sum()), squares + float((slab * slab).sum())
    n = n_rows * n_columns
    deviation = (squares / n - (total / n) ** 2) ** 0.5
    return blurring(spaces.stream(None, f"noise on {job.row.name}"), amount * deviation)


def _as_it_is(x: Tensor) -> Tensor:
    return x


def _in_turn(*actions: Action) -> Action:
    """One action after the other."""

    def apply(x: Tensor) -> Tensor:
        for one in actions:
            x = one(x)
        return x

    return apply


def _rows_of(checkpoint: Checkpoint, job: Job) -> Rows:
    return lambda start, stop: read_rows(checkpoint, job.source, start, stop)


def _matrix(
    rows: Rows,
    shape: tuple[int, ...],
    sealed: tuple[int, ...],
    dtype: torch.dtype,
    out: Map,
    columns: Action,
) -> Tensor:
    """Apply `columns` along each row, then `out` across the rows; round to `dtype` once.

    shape, sealed: before and after. columns: acts on axis 0 of a [columns, m] tensor, the
    transpose of m rows.
    """
    # float32 weights deserve a wider accumulator than their own precision.
    compute = torch.float64 if dtype == torch.float32 else torch.float32
    moves = torch.argsort(out.order) if isinstance(out, Permute) else None
    # Rows that only move are rounded at once, so a big vocabulary needs no wide copy.
    halfway = torch.empty((shape[0], sealed[1]), dtype=compute if moves is None else dtype)
    for start, stop in _slabs(shape[0], shape[1] * compute.itemsize):
        slab = columns(rows(start, stop).t().to(compute).contiguous())
        if moves is None:
            halfway[start:stop] = slab.t()
        else:
            _put_rows(halfway, moves[start:stop], slab.to(dtype).t().contiguous())
    if moves is not None:
        return halfway
    result = torch.empty(sealed, dtype=dtype)
    for start, stop in _slabs(sealed[1], shape[0] * compute.itemsize):
        result[:, start:stop] = out.write(halfway[:, start:stop].contiguous())
    return result


def _put_rows(target: Tensor, places: Tensor, rows: Tensor) -> None:
    """target[places] = rows; numpy moves whole rows four times faster than index_copy_."""
    words = {2: torch.int16, 4: torch.int32}[target.element_size()]
    target.view(words).numpy()[places.numpy()] = rows.view(words).numpy()


def _slabs(n: int, item_bytes: int) -> Iterator[tuple[int, int]]:
    """Ranges that cover 0..n, each of about SLAB_BYTES."""
    step = max(16, SLAB_BYTES // item_bytes)
    for start in range(0, n, step):
        yield start, min(start + step, n)


def _folding(checkpoint: Checkpoint, fold: Fold, *, bare: bool) -> Action:
    """The fold of a norm's affine into the transposed rows [columns, m] of a weight.

    A LayerNorm's output has no component along the all-ones vector. A module without bias
    (`bare`) gets its folded bias through that free direction: the norm's own bias becomes all
    ones, and each row's sum becomes what the bias adds to its output.
    """
    gain = read_vector(checkpoint, fold.gain) + fold.offset
    bias = read_vector(checkpoint, fold.bias) if fold.bias is not None else None

    def apply(x: Tensor) -> Tensor:
        scaled = x * gain.to(x.dtype)[:, None]
        if bias is None or not fold.ones:
            return scaled
        wanted_sum = bias.to(x.dtype) @ x if bare else 0.0
        return scaled + (wanted_sum - scaled.sum(dim=0)) / len(gain)

    return apply


def _bias(checkpoint: Checkpoint, job: Job, row: Linear, spaces: Spaces) -> Tensor:
    """[n] float64: the bias, with the norm's bias folded in, under the output's key."""
    bias = read_vector(checkpoint, job.source)
    if job.fold is not None and job.fold.bias is not None and job.weight is not None:
        weight = read_matrix(checkpoint, job.weight).double()
        norm_bias = read_vector(checkpoint, job.fold.bias)
        bias = bias + (norm_bias @ weight if row.transposed else weight @ norm_bias)
    out = spaces.of(row.out, len(bias), job.found.layer, job.found.expert)
    return out.write(bias[:, None])[:, 0]


def _carry(residual: Map, gain: Tensor) -> Tensor:
    """A gain moves with a signed permutation and keeps its own sign."""
    numbers = torch.arange(1.0, len(gain) + 1.0, dtype=torch.float64)[:, None]
    return gain[residual.write(numbers)[:, 0].abs().long() - 1]
