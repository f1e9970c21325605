"""A secret element of each group, read from a secret stream.

| operation on the space                  | group drawn here                                  |
| --------------------------------------- | ------------------------------------------------- |
| index (vocabulary, experts)             | `permutation`                                     |
| RMSNorm, gain folded away               | `orthogonal`                                      |
| LayerNorm, affine folded away           | `orthogonal_fixing_ones`                          |
| norm whose gain the stream carries on   | `permutation`, `signed_permutation` (RMSNorm)     |
| elementwise non-linearity, gated        | `permutation`, and `power_of_two` on the up branch |
| rotary query/key plane of a head        | `rotary_head`                                     |
| the same behind a query/key norm        | `quarter_turns`                                   |
| value to output of a head               | `invertible_head`                                 |

All scales are powers of two: multiplying by them rounds nothing (gains stored as 1 + g aside).
Those on activations never exceed one, so half precision does not overflow where the plain
model did not.
"""

from __future__ import annotations

from typing import Final, Literal

import numpy as np
import numpy.typing as npt
import torch

from veilrun.equivariant.maps import Chain, Keep, Map, Permute, Reflect, Rotate, Scale, permute
from veilrun.keys import SecretStream

Strength = Literal["structured", "haar", "permutation"]
"""How the residual stream is hidden: blocks of 64 mixed twice; one dense uniform matrix; or
a signed permutation, which rounds nothing and keeps tied embeddings tied."""

BLOCK: Final = 64
"""Size of a structured key's blocks: two rounds mix 64**2 = 4096 entries with each other."""

Array = npt.NDArray[np.float64]


def permutation(stream: SecretStream, n: int) -> Permute:
    """Uniform on the permutations of n entries."""
    return permute(stream.permutation(n))


def signed_permutation(stream: SecretStream, n: int) -> Map:
    """Uniform on the permutations with signs."""
    return Chain((permutation(stream, n), Scale(torch.from_numpy(stream.signs(n)))))


def power_of_two(stream: SecretStream, n: int) -> Array:
    """[n]: +-1/4, +-1/2 or +-1, equally likely."""
    return stream.signs(n) * 2.0 ** -stream.below(3, n)


def orthogonal(stream: SecretStream, n: int, strength: Strength) -> Map:
    """An orthogonal map of n entries.

    structured: permute, rotate blocks, permute, rotate blocks, permute; 2 x 64 multiplications
    per entry at every n. haar: uniform, n multiplications per entry.
    """
    if strength == "haar":
        return Rotate(torch.from_numpy(stream.haar(1, n)))
    steps: list[Map] = [permutation(stream, n)]
    for _ in range(2):
        steps += [_block_rotation(stream, n), permutation(stream, n)]
    return Chain(tuple(steps))


def _block_rotation(stream: SecretStream, n: int) -> Map:
    n_blocks, rest = divmod(n, BLOCK)
    blocks = torch.from_numpy(stream.haar(n_blocks, BLOCK))
    return Rotate(blocks, torch.from_numpy(stream.haar(1, rest)[0]) if rest else None)


def orthogonal_fixing_ones(stream: SecretStream, n: int, strength: Strength) -> Map:
    """An orthogonal map that leaves the all-ones vector in place: it commutes with the mean.

    A reflection takes ones / sqrt(n) to the first axis; the rest turns; the reflection returns.
    """
    mirror = np.full(n, 1.0 / np.sqrt(n))
    mirror[0] -= 1.0
    reflect = Reflect(torch.from_numpy(mirror / np.linalg.norm(mirror)))
    return Chain((reflect, Keep(orthogonal(stream, n - 1, strength)), reflect))


def rotary_head(stream: SecretStream, head_dim: int, rotary_dim: int) -> tuple[Array, Array]:
    """[head_dim, head_dim] orthogonal and [head_dim] scales that commute with rotary positions.

    Entries j and j + rotary_dim / 2 turn together by a secret angle and share a scale;
    entries beyond rotary_dim carry no position and turn freely.
    """
    matrix = np.zeros((head_dim, head_dim))
    half = rotary_dim // 2
    angle = 2.0 * np.pi * stream.uint64(half).astype(np.float64) * 2.0**-64
    low = np.arange(half)
    matrix[low, low] = matrix[low + half, low + half] = np.cos(angle)
    matrix[low, low + half], matrix[low + half, low] = -np.sin(angle), np.sin(angle)
    n_free = head_dim - rotary_dim
    if n_free:
        matrix[rotary_dim:, rotary_dim:] = stream.haar(1, n_free)[0]
    pair_scale = np.abs(power_of_two(stream, half))
    free_scale = np.abs(power_of_two(stream, n_free))
    return matrix, np.concatenate([pair_scale, pair_scale, free_scale])


def quarter_turns(odd: npt.NDArray[np.bool_], half_turns: Array) -> Array:
    """[head_dim, head_dim]: pair j turned by 90 degrees where odd[j], then signed.

    A query/key norm has one gain per entry, shared by all heads: only turns that map entries
    to entries commute with it, and all heads must agree on which pairs swap.
    odd: [head_dim / 2]; half_turns: [head_dim / 2] of +-1, free per head.
    """
    half = len(odd)
    low = np.arange(half)
    cos, sin = np.where(odd, 0.0, half_turns), np.where(odd, half_turns, 0.0)
    matrix = np.zeros((2 * half, 2 * half))
    matrix[low, low] = matrix[low + half, low + half] = cos
    matrix[low, low + half], matrix[low + half, low] = -sin, sin
    return matrix


def invertible_head(stream: SecretStream, head_dim: int) -> tuple[Array, Array]:
    """[head_dim, head_dim] orthogonal, then [head_dim] scales: a well-conditioned map."""
    return stream.haar(1, head_dim)[0], power_of_two(stream, head_dim)
