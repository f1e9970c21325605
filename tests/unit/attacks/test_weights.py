"""Tables that an attacker reads: of every architecture, what a key must leave comes out equal.

Every product of what writes the stream and what reads it survives the key, row by row moved.
Norms that subtract the mean (GPT-2, GPT-NeoX) see nothing along the all-ones vector; folding
fills that direction of their readers with biases, so there readers are compared without it.
"""

from __future__ import annotations

from pathlib import Path

import models
import numpy as np
import pytest
import torch

from veilrun.attacks.weights import LayerTables, Table, Weights, read_weights
from veilrun.checkpoint.folder import Checkpoint
from veilrun.equivariant.client import open_kit
from veilrun.equivariant.compile import encrypt
from veilrun.equivariant.families import family_of
from veilrun.equivariant.families.table import Family
from veilrun.equivariant.groups import Strength
from veilrun.keys import MasterKey

KEY = MasterKey(bytes(range(32)))
CASES = [(name, "permutation") for name in models.CONFIGS] + [
    (name, strength)
    for name in models.CONFIGS
    if "gemma" not in name  # their norms carry gains: permutations are all they allow
    for strength in ("structured", "haar")
]


class Rig:
    """A random checkpoint and its encrypted copy, as an attacker reads them; the true order."""

    def __init__(self, name: str, strength: Strength, work: Path, dtype: torch.dtype) -> None:
        folder = models.save_random(name, work / "plain", dtype=dtype)
        made = encrypt(folder, work / "out", KEY, kits=work / "kits", strength=strength)
        codec = open_kit(made.client, KEY, made.fingerprint).codec
        with Checkpoint(folder) as checkpoint:
            self.family: Family = family_of(checkpoint.config["model_type"])
        self.plain, self.sealed = read_weights(folder), read_weights(made.folder)
        self.order = np.array(codec.decode(range(models.VOCAB)))

    def read(self, rows: Table) -> Table:
        """A reader's rows, less what no norm lets through."""
        return rows - rows.mean(1, keepdims=True) if self.family.centres else rows

    def assert_equal(self, ours: Table, theirs: Table, tolerance: float) -> None:
        """Equal up to `tolerance` of the typical entry."""
        scale = np.sqrt(np.square(theirs).mean())
        np.testing.assert_allclose(ours, theirs, atol=tolerance * scale, rtol=0)


def across(rows: Table, into: Table, n: int) -> Table:
    """[hidden, hidden]: what one axis adds to the stream, all its rows together.

    n: rows of a head, where a key/value head serves several heads.
    """
    return shared_heads(rows, len(into), n).T @ into


def shared_heads(rows: Table, n_rows: int, n: int) -> Table:
    """[n_rows, hidden]: heads of n rows repeated as grouped queries use them."""
    heads = rows.reshape(-1, n, rows.shape[1])
    repeated: Table = np.repeat(heads, n_rows // len(rows), axis=0)
    return repeated.reshape(n_rows, -1)


@pytest.mark.parametrize(
    ("name", "strength", "dtype"),
    [(*case, torch.float32) for case in CASES]
    + [(*case, torch.bfloat16) for case in CASES if case[0] in ("llama", "gpt2", "qwen3_moe")],
    ids=lambda one: str(one).removeprefix("torch."),
)
def test_products_survive_the_key(name, strength, dtype, tmp_path: Path):
    rig = Rig(name, strength, tmp_path, dtype)
    tolerance = 2e-5 if dtype == torch.float32 else 0.1
    plain, sealed, order = rig.plain, rig.sealed, rig.order
    assert plain.head is not None and sealed.head is not None
    assert sealed.hidden == plain.hidden == plain.shape.hidden
    assert sealed.vocab_size == plain.vocab_size == models.VOCAB
    wanted = plain.embedding @ rig.read(plain.head).T
    found = sealed.embedding @ rig.read(sealed.head).T
    rig.assert_equal(found, wanted[order][:, order], tolerance)
    for ours, theirs in zip(sealed.layers, plain.layers, strict=True):
        assert_layer(rig, ours, theirs, tolerance)


def assert_layer(rig: Rig, ours: LayerTables, theirs: LayerTables, tolerance: float) -> None:
    assert ours.readers.keys() == theirs.readers.keys() >= {"query", "key", "value", "units"}
    assert ours.writers.keys() == theirs.writers.keys() >= {"context"}
    for axis in ("units", "experts"):  # these rows only move
        if axis in ours.readers:
            found = rig.sealed.embedding @ rig.read(ours.readers[axis]).T
            wanted = (rig.plain.embedding @ rig.read(theirs.readers[axis]).T)[rig.order]
            rig.assert_equal(np.sort(found), np.sort(wanted), tolerance)
    for reader, writer, n in pairs(rig, theirs):
        found, wanted = (
            weights.embedding
            @ across(rig.read(layer.readers[reader]), layer.writers[writer], n)
            @ rig.read(head_of(weights)).T
            for weights, layer in ((rig.sealed, ours), (rig.plain, theirs))
        )
        rig.assert_equal(found, wanted[rig.order][:, rig.order], tolerance)
    found, wanted = (
        weights.embedding @ scores_of(rig, layer) @ weights.embedding.T
        for weights, layer in ((rig.sealed, ours), (rig.plain, theirs))
    )
    rig.assert_equal(found, wanted[rig.order][:, rig.order], tolerance)


def pairs(rig: Rig, layer: LayerTables) -> list[tuple[str, str, int]]:
    """Axes that are read and written: values, and neurons (the linear branch, where there is)."""
    branch = "products" if "products" in layer.readers else "units"
    return [("value", "context", rig.plain.shape.head_dim), (branch, branch, 1)]


def scores_of(rig: Rig, layer: LayerTables) -> Table:
    """[hidden, hidden]: what all heads' scores come from, were it not for positions."""
    query, key = rig.read(layer.readers["query"]), rig.read(layer.readers["key"])
    scores: Table = query.T @ shared_heads(key, len(query), rig.plain.shape.head_dim)
    return scores


def head_of(weights: Weights) -> Table:
    assert weights.head is not None
    return weights.head


@pytest.mark.parametrize("strength", ["structured", "haar", "permutation"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "phi3", "mixtral"])
def test_an_orthogonal_key_keeps_spectra_and_hides_rows(name, strength, tmp_path: Path):
    rig = Rig(name, strength, tmp_path, torch.float32)
    for ours, theirs in zip(rig.sealed.layers, rig.plain.layers, strict=True):
        spectra = [
            np.linalg.svd(rig.read(one.readers["units"]), compute_uv=False)
            for one in (ours, theirs)
        ]
        np.testing.assert_allclose(*spectra, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(
        np.linalg.norm(rig.sealed.embedding, axis=1),
        np.linalg.norm(rig.plain.embedding, axis=1)[rig.order],
        rtol=1e-5,
    )
    assert not np.allclose(rig.sealed.embedding, rig.plain.embedding[rig.order], atol=0.05)


def test_gains_are_folded_into_what_reads_them(tmp_path: Path):
    folder = models.save_random("gemma2-untied", tmp_path / "plain")
    weights, model = read_weights(folder), models.load(folder)
    state = {name: one.double().numpy() for name, one in model.state_dict().items()}
    gain = 1.0 + state["model.layers.1.pre_feedforward_layernorm.weight"]
    readers = weights.layers[1].readers
    np.testing.assert_allclose(
        readers["units"], state["model.layers.1.mlp.gate_proj.weight"] * gain
    )
    np.testing.assert_allclose(
        readers["products"], state["model.layers.1.mlp.up_proj.weight"] * gain
    )
    head = state["lm_head.weight"] * (1.0 + state["model.norm.weight"])
    assert weights.head is not None
    np.testing.assert_allclose(weights.head, head)
    np.testing.assert_array_equal(weights.embedding, state["model.embed_tokens.weight"])
    writer = state["model.layers.1.mlp.down_proj.weight"].T
    np.testing.assert_array_equal(weights.layers[1].writers["products"], writer)
