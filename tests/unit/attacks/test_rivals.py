"""Rivals hide what their formulas hide, and keep what must stay: products of ends and readers."""

from __future__ import annotations

import numpy as np
import pytest
from red_team_rig import KEY

from veilrun.attacks import rivals
from veilrun.attacks.rivals import Noise
from veilrun.attacks.weights import LayerTables, Table, Weights
from veilrun.equivariant.families.table import Shape
from veilrun.keys import SecretStream

VOCAB, HIDDEN, UNITS, HEAD = 60, 24, 40, 6
SMALL = Noise(embedding=0.0, head=0.0, expansion=10)


def tables(seed: int = 0, *, head: bool = True) -> Weights:
    random = np.random.default_rng(seed)

    def fresh(n: int) -> Table:
        return random.standard_normal((n, HIDDEN))

    layers = tuple(
        LayerTables(
            {"query": fresh(24), "value": fresh(12), "units": fresh(UNITS)},
            {"context": fresh(24), "products": fresh(UNITS)},
        )
        for _ in range(2)
    )
    shape = Shape(2, HIDDEN, 4, 2, HEAD, HEAD, VOCAB)
    return Weights(fresh(VOCAB), fresh(VOCAB) if head else None, layers, shape)


def stream(label: str = "") -> SecretStream:
    return KEY.stream("test", label)


DRAWS = {**rivals.RIVALS, "covariant": rivals.covariant(SMALL)}


@pytest.fixture(params=DRAWS, ids=list(DRAWS))
def draw(request) -> rivals.DrawKey:
    return DRAWS[request.param]


def test_what_is_written_is_read_back(draw):
    key = draw(stream(), HIDDEN)
    np.testing.assert_allclose(key.write @ key.read, np.eye(HIDDEN), atol=1e-10)


def moved(products: Table, order: Table) -> Table:
    """Products of all pairs of tokens, as cipher ids number them."""
    return products[order][:, order]


def test_products_of_embedding_and_head_stay(draw):
    plain, copy = tables(), rivals.seal(tables(), stream(), draw)
    order = copy.order
    assert sorted(order) == list(range(VOCAB)) != list(order)
    products = copy.weights.embedding @ copy.weights.head.T
    np.testing.assert_allclose(products, moved(plain.embedding @ plain.head.T, order), atol=1e-9)


def test_neurons_move_and_their_readers_and_writers_alike(draw):
    plain, copy = tables(), rivals.seal(tables(), stream(), draw)
    sealed, order = copy.weights, copy.order
    for ours, theirs in zip(sealed.layers, plain.layers, strict=True):
        read = sealed.embedding @ ours.readers["units"].T
        wanted = (plain.embedding @ theirs.readers["units"].T)[order]
        assert not np.allclose(read, wanted)
        np.testing.assert_allclose(np.sort(read), np.sort(wanted), atol=1e-9)
        through = read @ ours.writers["products"] @ sealed.head.T
        wanted = plain.embedding @ theirs.readers["units"].T @ theirs.writers["products"]
        np.testing.assert_allclose(through, moved(wanted @ plain.head.T, order), atol=1e-8)


def test_heads_turn_but_their_spectra_stay(draw):
    plain, copy = tables(), rivals.seal(tables(), stream(), draw)

    def spectra(weights: Weights, rows: Table) -> Table:
        read = (weights.embedding @ rows.T).reshape(VOCAB, -1, HEAD)
        return np.linalg.svd(read.transpose(1, 0, 2), compute_uv=False)

    for ours, theirs in zip(copy.weights.layers, plain.layers, strict=True):
        for axis in ("query", "value"):
            found = spectra(copy.weights, ours.readers[axis])
            wanted = spectra(plain, theirs.readers[axis])
            np.testing.assert_allclose(np.sort(found, 0), np.sort(wanted, 0), atol=1e-9)


def test_each_rival_leaves_what_its_name_says():
    keys = {name: draw(stream(), HIDDEN) for name, draw in rivals.RIVALS.items()}
    np.testing.assert_array_equal(keys["vocabulary"].write, np.eye(HIDDEN))
    one_per_row = {name: (key.write != 0.0).sum(1).max() == 1 for name, key in keys.items()}
    assert one_per_row == {
        "vocabulary": True, "scaled": True, "permutation": True,
        "orthogonal": False, "invertible": False,
    }  # fmt: skip
    assert set(np.unique(keys["permutation"].write)) == {-1.0, 0.0, 1.0}
    scales = keys["scaled"].write.max(1)
    assert 0.25 <= scales.min() < 0.5 and 2.0 < scales.max() <= 4.0
    spectra = {name: np.linalg.svd(key.write, compute_uv=False) for name, key in keys.items()}
    np.testing.assert_allclose(spectra["orthogonal"], 1.0)
    assert 1.0 <= spectra["invertible"].min() < 2.0 and 5.0 < spectra["invertible"].max() <= 10.0


def test_the_same_stream_gives_the_same_copy_and_another_another(draw):
    one, again, other = (rivals.seal(tables(), stream(name), draw) for name in ("a", "a", "b"))
    np.testing.assert_array_equal(one.order, again.order)
    np.testing.assert_array_equal(one.weights.embedding, again.weights.embedding)
    for ours, theirs in zip(one.weights.layers, again.weights.layers, strict=True):
        for axis, rows in ours.readers.items():
            np.testing.assert_array_equal(rows, theirs.readers[axis])
    assert (one.order != other.order).any()
    assert not np.array_equal(one.weights.embedding, other.weights.embedding)


def test_an_expanded_key_widens_every_table():
    copy = rivals.covariant_copy(tables(), stream(), Noise(expansion=10))
    width = HIDDEN + 2 * 10
    assert copy.weights.hidden == copy.weights.shape.hidden == width
    assert copy.weights.head.shape == (VOCAB, width)
    for layer in copy.weights.layers:
        for rows in [*layer.readers.values(), *layer.writers.values()]:
            assert rows.shape[1] == width
    assert copy.weights.shape.vocab_size == VOCAB


@pytest.mark.parametrize("at", ["embedding", "head"])
def test_noise_is_where_it_was_asked_for_and_as_large(at):
    noise = Noise(**{"embedding": 0.0, "head": 0.0, at: 0.7}, expansion=10)
    plain, copy = tables(), rivals.covariant_copy(tables(), stream(), noise)
    key = rivals.covariant(noise)(stream(), HIDDEN)
    # The key is undone with itself: what is left beside the plain table is noise.
    left = {
        "embedding": copy.weights.embedding @ key.read - plain.embedding[copy.order],
        "head": copy.weights.head @ key.write.T - plain.head[copy.order],
    }
    for name, one in left.items():
        if name == at:
            assert one.std() == pytest.approx(0.7 * getattr(plain, at).std(), rel=0.1)
        else:
            np.testing.assert_allclose(one, 0.0, atol=1e-9)


def test_a_model_without_head_has_none_after():
    assert rivals.seal(tables(head=False), stream(), rivals.orthogonal).weights.head is None
