"""The key from inside the layers: exact under every key, and under AloePri's default noise."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from red_team_rig import KEY, part_of_minilm, recovered, sealed, stories, subject, unrelated

from veilrun.attacks.inner_key import find_inner_key, inner_map
from veilrun.attacks.levels import Level
from veilrun.attacks.methods.inner_maps import ATTACK
from veilrun.attacks.rivals import Noise, covariant_copy
from veilrun.attacks.weights import LayerTables, Weights, read_weights
from veilrun.bundled import prompter


def bundled() -> Weights:
    return read_weights(prompter())


def noisy(weights: Weights, amount: float, label: str = ""):
    noise = Noise(amount, amount / 5)
    return covariant_copy(weights, KEY.stream("inner", str(amount), label), noise)


@pytest.mark.parametrize(
    "tables", [stories, bundled, part_of_minilm], ids=["stories260K", "prompter", "MiniLM"]
)
@pytest.mark.parametrize("rival", ["permutation", "orthogonal", "invertible"])
def test_every_exact_key_falls(tables, rival):
    weights = tables()
    assert recovered(ATTACK, subject(weights, sealed(weights, rival))) > 0.99


@pytest.mark.parametrize("tables", [bundled, part_of_minilm], ids=["prompter", "MiniLM"])
def test_covariant_keys_with_default_noise_fall(tables):
    weights = tables()
    assert recovered(ATTACK, subject(weights, noisy(weights, 1.0))) > 0.95


def test_what_noise_hides_of_stories_are_its_rows_that_are_alike():
    """About half of its rows were hardly trained: no basis tells them apart under noise."""
    weights = stories()
    distances = np.linalg.norm(weights.embedding[:, None] - weights.embedding[None], axis=2)
    apart = np.sort(distances, axis=1)[:, 1] > weights.embedding.std()
    copy = noisy(weights, 1.0)
    of = subject(weights, copy)
    found = ATTACK.run(of.holdings(Level.BASE)).candidates[:, 0]
    right = found == copy.order
    assert 0.4 < apart.mean() < 0.6
    assert right[apart[copy.order]].mean() > 0.95


def test_storage_in_bfloat16_does_not_save_it():
    weights = bundled()
    copy = noisy(weights, 1.0)
    stored = _each_table(copy.weights, _bfloat16)
    assert recovered(ATTACK, subject(weights, replace(copy, weights=stored))) > 0.95


def test_unrelated_tables_match_by_chance_only():
    weights = bundled()
    of = subject(weights, sealed(weights, "invertible"), base=unrelated(weights))
    assert recovered(ATTACK, of) < 0.02


def test_noise_on_the_layers_too_stops_it():
    weights = bundled()
    random = np.random.default_rng(1)

    def blur(rows):
        return rows + rows.std() * random.standard_normal(rows.shape)

    copy = noisy(weights, 1.0)
    layers = tuple(
        LayerTables(
            {axis: blur(rows) for axis, rows in one.readers.items()},
            {axis: blur(rows) for axis, rows in one.writers.items()},
        )
        for one in copy.weights.layers
    )
    of = subject(weights, replace(copy, weights=replace(copy.weights, layers=layers)))
    assert recovered(ATTACK, of) < 0.1


def test_inner_maps_keep_their_eigenvalues_and_the_key_is_found_up_to_a_scalar():
    weights = bundled()
    copy = noisy(weights, 4.0)
    ours = np.linalg.eigvals(inner_map(copy.weights.layers[2]))
    theirs = np.linalg.eigvals(inner_map(weights.layers[2]))
    largest = np.sort(np.abs(ours))[::-1][: weights.hidden]
    np.testing.assert_allclose(largest, np.sort(np.abs(theirs))[::-1], rtol=1e-6)
    key = find_inner_key(copy.weights, weights)
    assert key.misfit < 1e-9
    back = copy.weights.layers[0].writers["products"] @ key.read
    plain = weights.layers[0].writers["products"]
    spread = np.linalg.svd(back)[1] / np.linalg.svd(plain)[1]
    assert spread.max() / spread.min() < 1.001


def test_one_layer_is_too_few():
    weights = stories()
    short = replace(weights, layers=weights.layers[:1])
    with pytest.raises(LookupError, match="one layer"):
        find_inner_key(short, short)


def _bfloat16(rows):
    return torch.from_numpy(rows).bfloat16().double().numpy()


def _each_table(weights: Weights, change) -> Weights:
    layers = tuple(
        LayerTables(
            {axis: change(rows) for axis, rows in one.readers.items()},
            {axis: change(rows) for axis, rows in one.writers.items()},
        )
        for one in weights.layers
    )
    return replace(
        weights, embedding=change(weights.embedding), head=change(weights.head), layers=layers
    )
