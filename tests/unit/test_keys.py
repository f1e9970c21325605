"""The master key: deterministic, uniform where it says so, and tight-lipped."""

from __future__ import annotations

import json
import pickle
import stat
from pathlib import Path

import numpy as np
import pytest

from veilrun.errors import KeyFileError, UsageError
from veilrun.keys import MasterKey, load_key, save_key

KEY = MasterKey(bytes(range(32)))
VECTOR = "851c6618dde59d56b298add22aef1dcf06b2300931cc00313651b1cc8873e1d1"
PERMUTATION = [5, 3, 0, 6, 4, 2, 7, 1]
FAST = 10  # log2 of scrypt's cost in tests


def test_derivation_is_fixed_for_ever():
    """A vector: if it changes, every encrypted checkpoint in the world stops matching its key."""
    assert KEY.derive("ee", "space").hex() == VECTOR
    assert KEY.stream("ee").permutation(8).tolist() == PERMUTATION


def test_labels_do_not_collide():
    labels = [("a", "b"), ("ab",), ("a", "b", ""), ("", "ab"), ("a\0b",)]
    assert len({KEY.derive(*label) for label in labels}) == len(labels)


def test_permutations_are_uniform():
    stream = KEY.stream("uniform")
    n_draws = 6000
    counts: dict[tuple[int, ...], int] = {}
    for _ in range(n_draws):
        one = tuple(stream.permutation(3).tolist())
        counts[one] = counts.get(one, 0) + 1
    assert len(counts) == 6
    expected = n_draws / 6
    chi2 = sum((count - expected) ** 2 / expected for count in counts.values())
    assert chi2 < 20.5  # 5 degrees of freedom: exceeded once in a thousand keys


def test_haar_matrices_are_orthogonal_and_centred():
    q = KEY.stream("haar").haar(200, 8)
    assert np.allclose(q @ q.transpose(0, 2, 1), np.eye(8), atol=1e-12)
    assert np.abs(q.mean(axis=0)).max() < 5 * np.sqrt(1 / 8 / 200)
    assert np.allclose((q**2).mean(), 1 / 8)


def test_normals_have_the_right_moments():
    x = KEY.stream("normal").normal(200_000)
    assert abs(x.mean()) < 0.01
    assert abs(x.std() - 1) < 0.01
    assert abs((x**4).mean() - 3) < 0.1


def test_key_file_round_trip(tmp_path: Path):
    path = tmp_path / "my.key"
    save_key(KEY, path, "correct horse", scrypt_log2_n=FAST)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load_key(path, "correct horse").derive("x") == KEY.derive("x")
    assert bytes(range(32)) not in path.read_bytes()
    with pytest.raises(UsageError, match="exists already"):
        save_key(KEY, path, "correct horse", scrypt_log2_n=FAST)
    with pytest.raises(KeyFileError, match="wrong passphrase"):
        load_key(path, "wrong horse")
    path.chmod(0o644)
    with pytest.raises(KeyFileError, match="chmod 600"):
        load_key(path, "correct horse")


def test_every_damaged_byte_is_refused(tmp_path: Path):
    good, bad = tmp_path / "good.key", tmp_path / "bad.key"
    save_key(KEY, good, "p", scrypt_log2_n=FAST)
    content = good.read_bytes()
    meaning = json.loads(content)
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 1
        try:
            if json.loads(bytes(damaged)) == meaning:
                continue  # white space
        except ValueError:
            pass
        bad.write_bytes(bytes(damaged))
        bad.chmod(0o600)
        with pytest.raises(KeyFileError) as caught:
            load_key(bad, "p")
        assert bytes(range(32)).hex() not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\x80\x04", b'{"format":"veilrun-key"}'])
def test_other_files_are_not_keys(tmp_path: Path, content: bytes):
    path = tmp_path / "x.key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(KeyFileError):
        load_key(path, "p")


def test_a_damaged_cost_cannot_ask_for_gigabytes(tmp_path: Path):
    path = tmp_path / "x.key"
    save_key(KEY, path, "p", scrypt_log2_n=FAST)
    body = json.loads(path.read_text())
    body["kdf"]["log2_n"] = 40
    path.write_text(json.dumps(body))
    with pytest.raises(KeyFileError, match="log2_n"):
        load_key(path, "p")


def test_a_key_is_never_shown():
    assert "000102" not in repr(KEY) and "secret" in repr(KEY)
    assert "secret" in repr(KEY.stream("x"))
    with pytest.raises(TypeError):
        pickle.dumps(KEY)
    with pytest.raises(UsageError, match="32 bytes"):
        MasterKey(b"short")
    with pytest.raises(UsageError, match="empty"):
        save_key(KEY, Path("nowhere"), "")
