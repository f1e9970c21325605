"""What each party gets of a model, once: its set-up parcel, and its shares of the weights.

A private weight W is held as W = W_1 + W_2 in the linear ring. W_1 is read from the stream that
the dealer shares with party 1, label "weight <matrix>", so party 1 is sent none of it; party 2
is sent W_2. Each is uniform on its own. Biases and constants go into the dealer's corrections.

The set-up parcel is one frame of `wire.tensors`, kind `mpc.setup`:

    P1   public, tokenizer: uint8, as in the model's folder; where the embedding is public:
         word, position: float32, and the field eps
    P2   public; weight.<matrix>: W_2; where the embedding is secret, embedding: E + M

Invariant: `decode_*` give what `encode_*` took, or raise `DecodeError`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from veilrun.errors import DecodeError
from veilrun.mpc import embedding, ring
from veilrun.mpc.model.public import decode_public, encode_public, is_diagonal, matrix_shapes
from veilrun.mpc.model.quantised import (
    CLIENT_EMBEDDING,
    SECRET_EMBEDDING,
    ClientEmbedding,
    PublicModel,
    QuantisedModel,
    matrix_of,
)
from veilrun.mpc.prg import Stream
from veilrun.mpc.shares import Array, dtype_of, wrap
from veilrun.mpc.weights import Matrix
from veilrun.wire import fields, tensors
from veilrun.wire.fields import Fields
from veilrun.wire.tensors import Limits, Message

_KIND: Final = "mpc.setup"
_LIMITS: Final = Limits(max_frame_bytes=1 << 40, max_tensors=1 << 14, max_fields=4)
_WEIGHT: Final = "weight."


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class ClientPart:
    """What party 1 has. client: the public embedding, where there is one."""

    public: PublicModel
    tokenizer_json: bytes
    client: ClientEmbedding | None


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class AssistantPart:
    """What party 2 has. masked: E + M, packed, where the embedding is secret."""

    public: PublicModel
    matrices: dict[str, Matrix]
    masked: ring.Packed | None


def first_share(key_1: bytes, public: PublicModel, name: str) -> Array:
    """W_1 of a matrix; the dealer and party 1 can tell."""
    shape = matrix_shapes(public)[name]
    return Stream(key_1, f"weight {name}").uniform(shape, public.profile.rings.linear)


def first_matrices(key_1: bytes, public: PublicModel, n_threads: int) -> dict[str, Matrix]:
    """Party 1's shares of all weights."""
    return {
        name: matrix_of(first_share(key_1, public, name), None, not is_diagonal(name), n_threads)
        for name in public.outputs
    }


def masked_table(key_1: bytes, model: QuantisedModel) -> Array | None:
    """E + M, where the embedding is secret."""
    if model.private.word is None:
        return None
    return embedding.mask_table(key_1, model.private.word, model.public.profile.rings.linear)


def encode_client(model: QuantisedModel, tokenizer_json: bytes) -> bytes:
    """Party 1's set-up parcel."""
    arrays: dict[str, tensors.Tensor] = {
        "public": np.frombuffer(encode_public(model.public), np.uint8),
        "tokenizer": np.frombuffer(tokenizer_json, np.uint8),
    }
    scalars: dict[str, tensors.Scalar] = {}
    if model.client is not None:
        arrays |= {"word": model.client.word, "position": model.client.position}
        scalars["eps"] = float(model.client.eps)
    return tensors.encode(Message(_KIND, arrays, scalars))


def encode_assistant(model: QuantisedModel, key_1: bytes, masked: Array | None) -> bytes:
    """Party 2's set-up parcel."""
    bits = model.public.profile.rings.linear
    arrays: dict[str, tensors.Tensor] = {
        "public": np.frombuffer(encode_public(model.public), np.uint8)
    }
    for name, matrix in model.private.matrices.items():
        weight = matrix.weight.astype(dtype_of(bits))
        arrays[_WEIGHT + name] = wrap(weight - first_share(key_1, model.public, name), bits)
    if masked is not None:
        arrays["embedding"] = masked
    return tensors.encode(Message(_KIND, arrays))


def decode_client(frame: bytes) -> ClientPart:
    """Read party 1's set-up parcel."""
    public, body, scalars = _open(frame)
    a = public.architecture
    tokenizer_json = body.take("tokenizer", tensors.array_of(np.uint8, None)).tobytes()
    client = None
    if public.embedding == CLIENT_EMBEDDING:
        client = ClientEmbedding(
            body.take("word", tensors.array_of(np.float32, a.n_vocab, a.hidden)),
            body.take("position", tensors.array_of(np.float32, a.n_positions, a.hidden)),
            scalars.take("eps", fields.between(0.0, 1.0)),
        )
    body.finish()
    scalars.finish()
    return ClientPart(public, tokenizer_json, client)


def decode_assistant(frame: bytes, n_threads: int) -> AssistantPart:
    """Read party 2's set-up parcel."""
    public, body, scalars = _open(frame)
    a, dtype = public.architecture, dtype_of(public.profile.rings.linear)
    matrices = {}
    for name, shape in matrix_shapes(public).items():
        weight = body.take(_WEIGHT + name, tensors.array_of(dtype, *shape))
        matrices[name] = matrix_of(weight, None, not is_diagonal(name), n_threads)
    masked = None
    if public.embedding == SECRET_EMBEDDING:
        table = body.take("embedding", tensors.array_of(dtype, a.n_vocab, a.hidden))
        masked = ring.pack(table)
    body.finish()
    scalars.finish()
    return AssistantPart(public, matrices, masked)


def _open(frame: bytes) -> tuple[PublicModel, Fields, Fields]:
    message = tensors.decode(frame, limits=_LIMITS)
    if message.kind != _KIND:
        raise DecodeError("the set-up parcel holds something else", field="kind")
    body: Any = Fields(message.tensors, _KIND)
    public = decode_public(body.take("public", tensors.array_of(np.uint8, None)).tobytes())
    return public, body, Fields(message.fields, _KIND)
