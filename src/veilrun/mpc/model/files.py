"""A quantised model as a folder.

    public.vrt            what every party may know: one frame, see `public`
    weights.safetensors   the owner's: <matrix>.weight, int16 where all its values fit and else
                          int32; <matrix>.bias, int64; position and layer_<i>.score, int64;
                          word, int32, where the embedding is secret
    client.safetensors    only where the embedding is public: word, position, float32; eps, float64
    tokenizer.json        the client's: turns a text into ids, special tokens included
    digests.json          file -> 64 hex digits: SHA-256 of the bytes; of the safetensors files
                          the Merkle root of the tensors (`checkpoint.merkle`)

Invariants. A folder appears whole or not at all, and only its owner can read it. What is
read is checked against digests.json, so a file that was damaged or exchanged is a
`CheckpointError` that names it. A party or a client needs no more than its own files and
digests.json. Nothing is a pickle.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from veilrun import atomic
from veilrun.checkpoint import merkle
from veilrun.checkpoint.folder import read_json
from veilrun.checkpoint.format import SafetensorsFile, SafetensorsWriter
from veilrun.errors import CheckpointError, DecodeError, UsageError
from veilrun.mpc.model.public import decode_public as decode_public
from veilrun.mpc.model.public import encode_public as encode_public
from veilrun.mpc.model.public import is_diagonal, matrix_shapes
from veilrun.mpc.model.quantised import (
    CLIENT_EMBEDDING,
    SECRET_EMBEDDING,
    ClientEmbedding,
    IntegerMatrix,
    PrivateModel,
    PublicModel,
    QuantisedModel,
)

PUBLIC_FILE: Final = "public.vrt"
WEIGHTS_FILE: Final = "weights.safetensors"
CLIENT_FILE: Final = "client.safetensors"
TOKENIZER_FILE: Final = "tokenizer.json"
DIGESTS_FILE: Final = "digests.json"

DIGEST_BYTES: Final = 32

Array = npt.NDArray[Any]
_Form = tuple[tuple[str, ...], tuple[int, ...]]
"""Of a tensor: the dtypes it may have, in safetensors' words, and its shape."""

_DTYPES: Final[Mapping[str, np.dtype[Any]]] = {
    "I16": np.dtype("<i2"),
    "I32": np.dtype("<i4"),
    "I64": np.dtype("<i8"),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
}
_WORDS: Final = {dtype: word for word, dtype in _DTYPES.items()}


def save(model: QuantisedModel, tokenizer_json: bytes, folder: Path) -> None:
    """Write a new folder.

    Raises:
        UsageError: the folder exists, or the model is none that could be read again.
        StorageError: the disk is full, or the place cannot be written.
    """
    frame = encode_public(model.public)
    try:
        decode_public(frame)
    except DecodeError as error:
        raise UsageError(f"this model cannot be stored: {error}") from error
    with atomic.new_folder(folder, mode=0o700) as new:
        digests = {
            PUBLIC_FILE: hashlib.sha256(frame).digest(),
            WEIGHTS_FILE: _write(new / WEIGHTS_FILE, _weights(model.private)),
            TOKENIZER_FILE: hashlib.sha256(tokenizer_json).digest(),
        }
        if model.client is not None:
            digests[CLIENT_FILE] = _write(new / CLIENT_FILE, _client(model.client))
        atomic.write_file(new / PUBLIC_FILE, frame, mode=0o600)
        atomic.write_file(new / TOKENIZER_FILE, tokenizer_json, mode=0o600)
        body = json.dumps({name: digests[name].hex() for name in sorted(digests)}, indent=2)
        atomic.write_file(new / DIGESTS_FILE, body.encode() + b"\n", mode=0o600)


def load(folder: Path) -> QuantisedModel:
    """The whole model, for its owner.

    Raises:
        CheckpointError: a file is missing, damaged, or of another model.
    """
    public = load_public(folder)
    stored = _read(folder, WEIGHTS_FILE, _weight_forms(public))
    matrices = {
        name: IntegerMatrix(
            stored[f"{name}.weight"].astype(np.int32),
            stored.get(f"{name}.bias"),
            not is_diagonal(name),
        )
        for name in public.outputs
    }
    constants = {name: stored[name] for name in _constant_shapes(public)}
    client = load_client(folder, public) if public.embedding == CLIENT_EMBEDDING else None
    return QuantisedModel(public, PrivateModel(matrices, constants, stored.get("word")), client)


def load_public(folder: Path) -> PublicModel:
    """The public part, for anybody; the owner's files may be missing.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    frame = _read_bytes(folder, PUBLIC_FILE)
    try:
        return decode_public(frame)
    except DecodeError as error:
        raise CheckpointError(f"{folder / PUBLIC_FILE}: {error}") from error


def load_client(folder: Path, public: PublicModel) -> ClientEmbedding:
    """The public embedding, for the client.

    Raises:
        CheckpointError: a file is missing, damaged, or of another model.
    """
    a = public.architecture
    stored = _read(
        folder,
        CLIENT_FILE,
        {
            "word": (("F32",), (a.n_vocab, a.hidden)),
            "position": (("F32",), (a.n_positions, a.hidden)),
            "eps": (("F64",), ()),
        },
    )
    return ClientEmbedding(stored["word"], stored["position"], float(stored["eps"]))


def load_tokenizer_json(folder: Path) -> bytes:
    """The content of tokenizer.json, for the client.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    return _read_bytes(folder, TOKENIZER_FILE)


def digest(folder: Path) -> bytes:
    """32 bytes that name the model, all files together: from digests.json alone.

    `load` checks that the files are what digests.json says. The digest betrays no weight, but
    whoever guesses the whole model can confirm it.

    Raises:
        CheckpointError: digests.json is missing or damaged.
    """
    body = b"".join(
        name.encode() + b"\x00" + value for name, value in sorted(_digests(folder).items())
    )
    return hashlib.sha256(b"veilrun mpc model\x00" + body).digest()


# --- what the tensors must be ---------------------------------------------------------------


def _constant_shapes(public: PublicModel) -> dict[str, tuple[int, ...]]:
    a = public.architecture
    shapes: dict[str, tuple[int, ...]] = {
        f"layer_{number}.score": (a.n_heads, 1, 1) for number in range(a.n_layers)
    }
    if public.embedding == SECRET_EMBEDDING:
        shapes["position"] = (a.max_tokens, a.hidden)
    return shapes


def _weight_forms(public: PublicModel) -> dict[str, _Form]:
    """Every tensor of weights.safetensors: names and shapes follow from the public part."""
    a = public.architecture
    forms: dict[str, _Form] = {}
    for name, shape in matrix_shapes(public).items():
        forms[f"{name}.weight"] = (("I16", "I32"), shape)
        if ".residual_" not in name:
            forms[f"{name}.bias"] = (("I64",), shape[1:])
    for name, constant_shape in _constant_shapes(public).items():
        forms[name] = (("I64",), constant_shape)
    if public.embedding == SECRET_EMBEDDING:
        forms["word"] = (("I32",), (a.n_vocab, a.hidden))
    return forms


def _weights(private: PrivateModel) -> dict[str, Array]:
    """The same from a model, to be written."""
    arrays: dict[str, Array] = dict(private.constants)
    for name, matrix in private.matrices.items():
        arrays[f"{name}.weight"] = _narrowed(matrix.weight)
        if matrix.bias is not None:
            arrays[f"{name}.bias"] = matrix.bias
    if private.word is not None:
        arrays["word"] = private.word
    return arrays


def _client(client: ClientEmbedding) -> dict[str, Array]:
    return {
        "word": client.word,
        "position": client.position,
        "eps": np.asarray(client.eps, np.float64),
    }


def _narrowed(weight: Array) -> Array:
    limits = np.iinfo(np.int16)
    fits = weight.size == 0 or (weight.min() >= limits.min and weight.max() <= limits.max)
    return weight.astype(np.int16) if fits else weight


# --- files and their digests ----------------------------------------------------------------


def _write(path: Path, arrays: Mapping[str, Array]) -> bytes:
    """Write a safetensors file; its Merkle root."""
    named = {name: np.ascontiguousarray(array) for name, array in sorted(arrays.items())}
    # ascontiguousarray makes a scalar a vector of one, so shapes are the arrays' own.
    entries = [(name, _WORDS[array.dtype], arrays[name].shape) for name, array in named.items()]
    leaves = {}
    with SafetensorsWriter(path, entries) as writer:
        path.chmod(0o600)
        for name, array in named.items():
            data = array.reshape(-1).view(np.uint8).data
            writer.write(name, data)
            leaves[name] = merkle.leaf(writer.infos[name], hashlib.sha256(data).digest())
    return merkle.root(leaves)


def _read(folder: Path, name: str, forms: Mapping[str, _Form]) -> dict[str, Array]:
    """All tensors of a safetensors file, of these forms and no others."""
    path = folder / name
    wanted = _digest_of(folder, name)
    file = SafetensorsFile(path)
    try:
        _check_forms(file, forms)
        arrays, leaves = {}, {}
        for tensor, info in file.infos.items():
            data = file.read(tensor)
            leaves[tensor] = merkle.leaf(info, hashlib.sha256(data).digest())
            arrays[tensor] = np.frombuffer(data, _DTYPES[info.dtype]).reshape(info.shape)
    finally:
        file.close()
    _check_digest(path, merkle.root(leaves), wanted)
    return arrays


def _check_forms(file: SafetensorsFile, forms: Mapping[str, _Form]) -> None:
    strange = sorted(file.infos.keys() ^ forms.keys())
    if strange:
        raise CheckpointError(
            f"{file.path} is not of the model in {PUBLIC_FILE}: it lacks, or has beyond it, "
            f"{', '.join(strange[:4])}"
        )
    for name, (dtypes, shape) in forms.items():
        info = file.infos[name]
        if info.dtype not in dtypes or info.shape != shape:
            raise CheckpointError(
                f"{file.path}: {name} is {info.dtype} {list(info.shape)} and must be "
                f"{' or '.join(dtypes)} {list(shape)}"
            )


def _read_bytes(folder: Path, name: str) -> bytes:
    path = folder / name
    wanted = _digest_of(folder, name)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    _check_digest(path, hashlib.sha256(content).digest(), wanted)
    return content


def _check_digest(path: Path, found: bytes, wanted: bytes) -> None:
    if found != wanted:
        raise CheckpointError(
            f"{path} is not what {DIGESTS_FILE} says: it was damaged or exchanged; quantise the "
            "model again or copy the folder once more"
        )


def _digest_of(folder: Path, name: str) -> bytes:
    digests = _digests(folder)
    if name not in digests:
        raise CheckpointError(f"{folder / DIGESTS_FILE} says nothing of {name}")
    return digests[name]


def _digests(folder: Path) -> dict[str, bytes]:
    path = folder / DIGESTS_FILE
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder with a quantised model")
    digests = {}
    for name, text in read_json(path).items():
        if not isinstance(text, str) or len(text) != 2 * DIGEST_BYTES or not _is_hex(text):
            raise CheckpointError(f"{path} is damaged: no digest for {name[:64]!r}")
        digests[name] = bytes.fromhex(text)
    return digests


def _is_hex(text: str) -> bool:
    return all(character in "0123456789abcdef" for character in text)
