"""Nearest rows in blocks are nearest rows: held to the slow way."""

from __future__ import annotations

import numpy as np
import pytest

from veilrun.attacks import matching


@pytest.fixture(params=[matching._BLOCK, 7], ids=["one block", "many blocks"])
def blocks(request, monkeypatch):
    monkeypatch.setattr(matching, "_BLOCK", request.param)


@pytest.fixture(params=[matching._STRETCH, 4], ids=["stretch 64", "stretch 4"])
def stretches(request, monkeypatch):
    monkeypatch.setattr(matching, "_STRETCH", request.param)


def tables(n: int = 30, m: int = 50, f: int = 5) -> tuple[matching.Table, matching.Table]:
    random = np.random.default_rng(1)
    return random.standard_normal((n, f)), random.standard_normal((m, f)) * 3.0


@pytest.mark.parametrize("m", [1, 3, 50, 64, 65, 130])
@pytest.mark.parametrize("k", [1, 3, 10])
def test_nearest_is_what_all_distances_say(blocks, stretches, m, k):
    rows, among = tables(m=m)
    distances = np.linalg.norm(rows[:, None] - among, axis=2)
    found, measured = matching.nearest(rows, among, k)
    assert found.shape == (30, min(k, m))
    np.testing.assert_array_equal(found, np.argsort(distances, axis=1)[:, :k])
    np.testing.assert_allclose(measured, np.sort(distances, axis=1)[:, :k], rtol=1e-9)


@pytest.mark.parametrize("k", [1, 3, 60])
def test_cosines_are_what_all_cosines_say(blocks, stretches, k):
    rows, among = tables()
    lengths = np.linalg.norm(rows, axis=1)[:, None] * np.linalg.norm(among, axis=1)
    cosines = rows @ among.T / lengths
    for nearest, scores in (
        (matching.nearest_by_cosine, cosines),
        (matching.nearest_by_direction, np.abs(cosines)),
    ):
        found, measured = nearest(rows, among, k)
        np.testing.assert_array_equal(found, np.argsort(-scores, axis=1)[:, :k])
        np.testing.assert_allclose(measured, -np.sort(-scores, axis=1)[:, :k], rtol=1e-12)


def test_a_row_turned_round_is_near_by_direction_alone():
    rows, _ = tables()
    found, cosines = matching.nearest_by_direction(-2.0 * rows, rows)
    np.testing.assert_array_equal(found[:, 0], np.arange(30))
    np.testing.assert_allclose(cosines, 1.0)
    found, _ = matching.nearest_by_cosine(-2.0 * rows, rows)
    assert (found[:, 0] != np.arange(30)).all()


def test_equal_rows_are_all_found():
    rows = np.ones((3, 4))
    found, distances = matching.nearest(rows, np.ones((200, 4)), 10)
    assert all(len(set(one)) == 10 for one in found.tolist())
    np.testing.assert_allclose(distances, 0.0, atol=1e-7)


def test_rows_of_zeros_and_constant_columns_give_no_nan():
    table = np.array([[0.0, 0.0], [3.0, 4.0]])
    np.testing.assert_array_equal(matching.unit(table), [[0.0, 0.0], [0.6, 0.8]])
    table = np.array([[1.0, 5.0], [3.0, 5.0]])
    np.testing.assert_array_equal(matching.standardised(table), [[-1.0, 0.0], [1.0, 0.0]])


def test_sorted_magnitudes_do_not_see_order_or_signs():
    rows, _ = tables(f=40)
    signs = np.where(np.arange(40) % 3 == 0, -1.0, 1.0)
    moved = (rows * signs)[:, ::-1]
    np.testing.assert_array_equal(
        matching.sorted_magnitudes(rows, 16), matching.sorted_magnitudes(moved, 16)
    )
    features = matching.sorted_magnitudes(rows, 16)
    assert features.shape == (30, 16)
    np.testing.assert_array_equal(features[:, 0], np.abs(rows).min(1))
    np.testing.assert_array_equal(features[:, -1], np.abs(rows).max(1))
