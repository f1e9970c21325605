"""Maps and groups: contragredients keep inner products; each group commutes with its operation."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from veilrun.equivariant import groups
from veilrun.equivariant.codec import Codec
from veilrun.equivariant.maps import Concat, Dual, Map, Permute, Rotate, Scale, interleave
from veilrun.errors import UsageError, VerificationError
from veilrun.keys import MasterKey

KEY = MasterKey(bytes(range(32)))
EXACT = dict(atol=1e-11, rtol=0)


def stream():
    return KEY.stream("maps")


def _products(n: int) -> Map:
    secret = stream()
    return Concat(
        (groups.permutation(secret, n - 3), Scale(torch.from_numpy(groups.power_of_two(secret, 3))))
    )


MAPS: dict[str, Callable[[], Map]] = {
    "permutation": lambda: groups.permutation(stream(), 30),
    "signed": lambda: groups.signed_permutation(stream(), 30),
    "structured": lambda: groups.orthogonal(stream(), 150, "structured"),
    "structured-small": lambda: groups.orthogonal(stream(), 17, "structured"),
    "haar": lambda: groups.orthogonal(stream(), 40, "haar"),
    "ones": lambda: groups.orthogonal_fixing_ones(stream(), 150, "structured"),
    "ones-haar": lambda: groups.orthogonal_fixing_ones(stream(), 40, "haar"),
    "concat-scale": lambda: _products(20),
    "dual": lambda: Dual(_products(20)),
    "interleave": lambda: interleave(
        (groups.orthogonal(stream(), 12, "haar"), _products(12), groups.permutation(stream(), 12)),
        4,
    ),
}


@pytest.mark.parametrize("name", MAPS)
def test_what_writes_and_what_reads_cancel(name: str):
    one = MAPS[name]()
    generator = torch.Generator().manual_seed(1)
    x, w = (torch.randn(one.size, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    assert torch.allclose(one.write(x).T @ one.read(w), x.T @ w, **EXACT)
    assert one.write(x).shape == x.shape
    assert not torch.allclose(one.write(x), x)


def test_orthogonal_keys_keep_norms_and_mix_everything():
    for strength in ("structured", "haar"):
        one = groups.orthogonal(stream(), 200, strength)
        matrix = one.write(torch.eye(200, dtype=torch.float64))
        assert torch.allclose(matrix @ matrix.T, torch.eye(200, dtype=torch.float64), **EXACT)
        assert (matrix.abs() > 1e-9).double().mean() > 0.9


def test_the_all_ones_vector_stays():
    one = groups.orthogonal_fixing_ones(stream(), 150, "structured")
    ones = torch.ones(150, 1, dtype=torch.float64)
    assert torch.allclose(one.write(ones), ones, **EXACT)


def test_a_head_key_commutes_with_rotary_positions():
    head_dim, rotary_dim, half = 16, 8, 4
    matrix, scale = groups.rotary_head(stream(), head_dim, rotary_dim)
    angle = np.linspace(0.3, 2.0, half)
    turn = np.eye(head_dim)
    low = np.arange(half)
    turn[low, low] = turn[low + half, low + half] = np.cos(angle)
    turn[low, low + half], turn[low + half, low] = -np.sin(angle), np.sin(angle)
    key = np.diag(scale) @ matrix
    assert np.allclose(key @ turn, turn @ key)
    assert not np.allclose(key, np.eye(head_dim))


def test_quarter_turns_move_entries_to_entries():
    odd = np.array([True, False, True])
    matrix = groups.quarter_turns(odd, np.array([1.0, -1.0, -1.0]))
    assert np.array_equal(np.abs(matrix).sum(0), np.ones(6))
    assert np.allclose(matrix @ matrix.T, np.eye(6))
    assert np.array_equal(np.abs(matrix).argmax(1), [3, 1, 5, 0, 4, 2])


def test_float32_is_used_as_given():
    one = Rotate(torch.eye(4, dtype=torch.float64)[None], torch.eye(2, dtype=torch.float64))
    assert one.write(torch.ones(6, 3)).dtype == torch.float32


def test_codec_is_a_bijection_and_checks_ids():
    codec = Codec(KEY, "digest", "llama", 1000)
    ids = tuple(range(1000))
    assert codec.decode(codec.encode(ids)) == ids
    assert sorted(codec.encode(ids)) == list(ids)
    assert sum(a == b for a, b in zip(codec.encode(ids), ids, strict=True)) < 10
    for bad in (-1, 1000):
        with pytest.raises(UsageError, match=f"{bad} is outside"):
            codec.encode([0, bad])
        with pytest.raises(VerificationError, match=f"{bad} is outside"):
            codec.decode([0, bad])
    assert str(codec.encode([5])[0]) not in repr(codec).replace(codec.fingerprint, "")
    assert Codec(KEY, "other", "llama", 1000).encode(ids) != codec.encode(ids)


def test_permute_takes_entries_by_order():
    assert Permute(torch.tensor([2, 0, 1])).write(torch.tensor([[1.0], [2.0], [3.0]])).tolist() == [
        [3.0],
        [1.0],
        [2.0],
    ]
