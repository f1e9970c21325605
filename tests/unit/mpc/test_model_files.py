"""Quantised models on disk. Invariants under test: what is saved comes back to the bit; damage is a
`CheckpointError` that names the file.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import stat
from functools import lru_cache
from pathlib import Path

import mpc_model_rig as rig
import numpy as np
import pytest

from veilrun.checkpoint.format import SafetensorsFile
from veilrun.errors import CheckpointError, UsageError
from veilrun.mpc import inference
from veilrun.mpc.machines.twin import uniform_low_bits
from veilrun.mpc.model import files
from veilrun.mpc.model.entry import entry_of
from veilrun.mpc.model.quantised import (
    CLIENT_EMBEDDING,
    SECRET_EMBEDDING,
    IntegerMatrix,
    PublicModel,
    QuantisedModel,
)
from veilrun.mpc.profile import W1A4, W16A8

TOKENIZER = b'{"version": "1.0"}'


@lru_cache
def model_of(
    family: str = "bert", is_encoder: bool = False, kind: str = SECRET_EMBEDDING, profile=W16A8
) -> QuantisedModel:
    shape = rig.architecture(family, is_encoder=is_encoder)
    return rig.quantised(rig.float_model(shape), profile=profile, kind=kind)


def same_public(one: PublicModel, other: PublicModel) -> bool:
    return files.encode_public(one) == files.encode_public(other)


@pytest.mark.parametrize("family", rig.FAMILIES)
@pytest.mark.parametrize("is_encoder", [False, True])
@pytest.mark.parametrize("kind", [SECRET_EMBEDDING, CLIENT_EMBEDDING])
@pytest.mark.parametrize("profile", [W16A8, W1A4], ids=lambda one: one.name)
def test_a_folder_gives_the_model_back(tmp_path: Path, family, is_encoder, kind, profile):
    model = model_of(family, is_encoder, kind, profile)
    files.save(model, TOKENIZER, tmp_path / "out")
    back = files.load(tmp_path / "out")
    assert same_public(back.public, model.public)
    assert same_public(files.load_public(tmp_path / "out"), model.public)
    assert back.public.profile == profile and back.public.architecture == model.public.architecture
    assert back.private.matrices.keys() == model.private.matrices.keys()
    for name, matrix in model.private.matrices.items():
        other = back.private.matrices[name]
        assert np.array_equal(other.weight, matrix.weight) and other.weight.dtype == np.int32
        assert other.is_dense == matrix.is_dense
        assert (other.bias is None) == (matrix.bias is None)
        assert matrix.bias is None or np.array_equal(other.bias, matrix.bias)
    assert back.private.constants.keys() == model.private.constants.keys()
    for name, constant in model.private.constants.items():
        assert np.array_equal(back.private.constants[name], constant)
    assert files.load_tokenizer_json(tmp_path / "out") == TOKENIZER
    ids = rig.texts(model.public.architecture, 1)[0]
    first, second = (
        inference.predict(inference.TwinModel(one), entry_of(one, ids), uniform_low_bits(0))[0]
        for one in (model, back)
    )
    assert np.array_equal(first.integers, second.integers) and first.flagged == second.flagged


def test_the_client_gets_the_embedding_only_where_it_is_public(tmp_path: Path):
    for kind in (SECRET_EMBEDDING, CLIENT_EMBEDDING):
        model = model_of(kind=kind)
        files.save(model, TOKENIZER, tmp_path / kind)
        assert (tmp_path / kind / files.CLIENT_FILE).exists() == (kind == CLIENT_EMBEDDING)
        assert (files.load(tmp_path / kind).private.word is None) == (kind == CLIENT_EMBEDDING)
    assert model.client is not None
    back = files.load_client(tmp_path / CLIENT_EMBEDDING, model.public)
    assert np.array_equal(back.word, model.client.word) and back.eps == model.client.eps
    assert np.array_equal(back.position, model.client.position)


def test_only_the_owner_can_read(tmp_path: Path):
    previous = os.umask(0o022)
    try:
        for kind in (SECRET_EMBEDDING, CLIENT_EMBEDDING):
            files.save(model_of(kind=kind), TOKENIZER, tmp_path / kind)
            modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / kind).iterdir()}
            assert modes == {0o600}
            assert stat.S_IMODE((tmp_path / kind).stat().st_mode) == 0o700
    finally:
        os.umask(previous)


def test_weights_that_fit_take_two_bytes(tmp_path: Path):
    model = model_of()
    wide = dict(model.private.matrices)
    large = wide["layer_0.up"].weight.copy()
    large[0, 0] = 2**15
    wide["layer_0.up"] = IntegerMatrix(large, wide["layer_0.up"].bias, True)
    private = dataclasses.replace(model.private, matrices=wide)
    files.save(dataclasses.replace(model, private=private), TOKENIZER, tmp_path / "out")
    stored = SafetensorsFile(tmp_path / "out" / files.WEIGHTS_FILE)
    dtypes = {name: info.dtype for name, info in stored.infos.items()}
    stored.close()
    assert dtypes["layer_0.up.weight"] == "I32" and dtypes["layer_1.up.weight"] == "I16"
    assert files.load(tmp_path / "out").private.matrices["layer_0.up"].weight[0, 0] == 2**15


def test_parties_and_clients_need_their_own_files_only(tmp_path: Path):
    model = model_of(kind=CLIENT_EMBEDDING)
    files.save(model, TOKENIZER, tmp_path / "whole")
    needed = [files.PUBLIC_FILE, files.CLIENT_FILE, files.TOKENIZER_FILE, files.DIGESTS_FILE]
    (tmp_path / "client").mkdir()
    for name in needed:
        shutil.copy(tmp_path / "whole" / name, tmp_path / "client")
    public = files.load_public(tmp_path / "client")
    files.load_client(tmp_path / "client", public)
    files.load_tokenizer_json(tmp_path / "client")
    assert files.digest(tmp_path / "client") == files.digest(tmp_path / "whole")
    with pytest.raises(CheckpointError, match=files.WEIGHTS_FILE):
        files.load(tmp_path / "client")


def test_the_digest_names_the_model(tmp_path: Path):
    model = model_of()
    files.save(model, TOKENIZER, tmp_path / "one")
    files.save(model, TOKENIZER, tmp_path / "two")
    assert files.digest(tmp_path / "one") == files.digest(tmp_path / "two")
    assert len(files.digest(tmp_path / "one")) == files.DIGEST_BYTES
    files.save(model, b"{}", tmp_path / "tokens")
    changed = dict(model.private.constants)
    changed["layer_0.score"] = changed["layer_0.score"] + 1
    private = dataclasses.replace(model.private, constants=changed)
    files.save(dataclasses.replace(model, private=private), TOKENIZER, tmp_path / "weights")
    public = dataclasses.replace(model.public, n_sentences=7)
    files.save(dataclasses.replace(model, public=public), TOKENIZER, tmp_path / "public")
    names = ("one", "tokens", "weights", "public")
    assert len({files.digest(tmp_path / name) for name in names}) == len(names)


# --- damage on disk -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [files.PUBLIC_FILE, files.WEIGHTS_FILE, files.CLIENT_FILE, files.DIGESTS_FILE]
)
@pytest.mark.parametrize("damage", ["missing", "short", "long", "flipped", "empty"])
def test_damage_names_the_file(tmp_path: Path, name: str, damage: str):
    files.save(model_of(kind=CLIENT_EMBEDDING), TOKENIZER, tmp_path / "out")
    path = tmp_path / "out" / name
    content = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    else:
        content[-9] ^= 1 if damage == "flipped" else 0
        changed = {"short": content[:-3], "long": content + b"x", "empty": b""}
        path.write_bytes(changed.get(damage, content))
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        files.load(tmp_path / "out")


def test_a_damaged_tokenizer_is_named(tmp_path: Path):
    files.save(model_of(), TOKENIZER, tmp_path / "out")
    (tmp_path / "out" / files.TOKENIZER_FILE).write_bytes(b"{}")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        files.load_tokenizer_json(tmp_path / "out")


def test_weights_of_another_model_are_refused(tmp_path: Path):
    for name, kind in (("one", SECRET_EMBEDDING), ("two", CLIENT_EMBEDDING)):
        files.save(model_of(kind=kind), TOKENIZER, tmp_path / name)
    shutil.copy(tmp_path / "two" / files.WEIGHTS_FILE, tmp_path / "one")
    with pytest.raises(CheckpointError, match="position, word"):
        files.load(tmp_path / "one")
    shape = rig.architecture(hidden=24, n_vocab=30)
    files.save(rig.quantised(rig.float_model(shape)), TOKENIZER, tmp_path / "three")
    shutil.copy(tmp_path / "three" / files.WEIGHTS_FILE, tmp_path / "one")
    with pytest.raises(CheckpointError, match="must be"):
        files.load(tmp_path / "one")


def test_no_folder_and_an_existing_one(tmp_path: Path):
    with pytest.raises(UsageError, match="not a folder"):
        files.load(tmp_path / "nowhere")
    files.save(model_of(), TOKENIZER, tmp_path / "out")
    with pytest.raises(UsageError, match="exists already"):
        files.save(model_of(), TOKENIZER, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_profile_that_is_not_built_in_travels_whole():
    profile = dataclasses.replace(W16A8, name="mine", x_fraction=7)
    shape = rig.architecture()
    model = rig.quantised(rig.float_model(shape), profile=profile)
    assert files.decode_public(files.encode_public(model.public)).profile == profile


def test_a_model_that_could_not_be_read_is_not_written(tmp_path: Path):
    model = model_of()
    odd = dataclasses.replace(model.public.architecture, labels=("a", "b", "\x07"))
    broken = dataclasses.replace(model, public=dataclasses.replace(model.public, architecture=odd))
    with pytest.raises(UsageError, match="cannot be shown"):
        files.save(broken, TOKENIZER, tmp_path / "out")
    assert not list(tmp_path.iterdir())
