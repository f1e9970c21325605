"""Graph matching and counts, against what can be worked out by hand."""

from __future__ import annotations

import numpy as np

from veilrun.attacks.alignment import align, alike, assign, doubly_stochastic, evidence_of_counts
from veilrun.attacks.counts import commonest, counts_of, followers


def test_a_renamed_graph_is_found_again():
    random = np.random.default_rng(0)
    graph, order = random.random((40, 40)), random.permutation(40)
    renamed = graph[np.ix_(order, order)]
    hint = np.eye(40)[order] + random.random((40, 40))
    found = align([renamed], [graph], doubly_stochastic(hint))
    assert (found.order == order).all()
    assert np.isclose(found.agreement, np.square(graph).sum())
    assert (found.scores.argmax(1) == order).mean() > 0.9


def test_evidence_decides_where_graphs_say_nothing():
    flat, order = np.ones((5, 5)), np.array([2, 0, 1, 4, 3])
    found = align([flat], [flat], np.full((5, 5), 0.2), np.eye(5)[order])
    assert found.order.tolist() == order.tolist()
    assert np.isclose(found.agreement, 25.0 + 5.0)


def test_rows_and_columns_sum_to_one():
    scaled = doubly_stochastic(np.random.default_rng(0).random((8, 8)) + 0.1)
    assert np.allclose(scaled.sum(0), 1.0) and np.allclose(scaled.sum(1), 1.0)


def test_each_column_is_given_once():
    assert assign(np.array([[5.0, 4.0], [5.0, 0.0]])).tolist() == [1, 0]


def test_counts_speak_for_the_same_share():
    counts = np.array([1000.0, 100.0, 10.0])
    evidence = evidence_of_counts(counts, 3 * counts)
    assert evidence.argmax(1).tolist() == [0, 1, 2]
    assert np.allclose(alike(evidence).sum(1), 1.0)


def test_counting():
    texts = [np.array([0, 1, 1]), np.array([1, 3])]
    assert counts_of(texts, 4).tolist() == [1.0, 3.0, 0.0, 1.0]
    assert commonest(counts_of(texts, 4), 3).tolist() == [1, 0, 3]
    table = followers(texts, np.array([1, 0]), np.array([3, 1]), 4)
    assert table.tolist() == [[1.0, 1.0], [0.0, 1.0]]
