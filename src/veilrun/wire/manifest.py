"""What an encrypted checkpoint, and a node that serves it, says of itself. Values and JSON.

`veilrun.json` lies in the encrypted checkpoint, on the untrusted side: it names neither the
plain model nor anything derived from its weights without the key. The node repeats it in
its card, so that a proxy with the wrong key stops before it sends a token.

Invariant: the `decode_*` functions return a value or raise `DecodeError`, nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal, cast, get_args

from veilrun.errors import DecodeError
from veilrun.wire import fields
from veilrun.wire.fields import Fields

MANIFEST_FILE = "veilrun.json"
_FORMAT = "veilrun-encrypted-checkpoint"
_VERSION = 1

Ends = Literal["node", "client"]
"""Who holds embedding and head; without them a node serves the middle of a model."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What the encrypted checkpoint may say in the open.

    mode: the guarantee ladder's row, `ee`.
    fingerprint: 32 hex digits, a keyed hash of key and plain model; proves neither to others.
    vocab_size: ids go from 0 to vocab_size - 1.
    weights_root: Merkle root of the *encrypted* weights, 64 hex digits.
    ends: who holds embedding and head.
    """

    mode: str
    fingerprint: str
    vocab_size: int
    weights_root: str
    ends: Ends = "node"


@dataclass(frozen=True, slots=True)
class NodeCard:
    """A node's answer to `GET /v1/models`.

    model: the name the node serves under. engine: what runs it.
    max_model_len: prompt and answer together, in tokens.
    """

    model: str
    engine: str
    max_model_len: int
    manifest: Manifest


def encode_manifest(manifest: Manifest) -> bytes:
    """The content of `veilrun.json`."""
    return json.dumps(_manifest_to_json(manifest), indent=2).encode() + b"\n"


def decode_manifest(body: bytes) -> Manifest:
    """Read `veilrun.json`."""
    return _manifest(fields.json_object(body))


def encode_card(card: NodeCard) -> bytes:
    """The JSON of `GET /v1/models`, shaped as OpenAI's and vLLM's list of models."""
    entry = {
        "id": card.model,
        "object": "model",
        "owned_by": "veilrun",
        "max_model_len": card.max_model_len,
        "engine": card.engine,
        "veilrun": _manifest_to_json(card.manifest),
    }
    return json.dumps({"object": "list", "data": [entry]}).encode()


def decode_card(body: bytes) -> NodeCard:
    """Read a node's list of models; a node serves exactly one."""
    models = Fields(fields.json_object(body), "").take("data", fields.list_of(fields.mapping))
    if len(models) != 1:
        raise DecodeError(f"the node lists {len(models)} models; a veilrun node serves one")
    model = Fields(models[0], "model")
    return NodeCard(
        model=model.take("id", fields.short_text),
        engine=model.take("engine", fields.short_text),
        max_model_len=model.take("max_model_len", fields.within(1, 2**31)),
        manifest=_manifest(model.take("veilrun", fields.mapping)),
    )


def _manifest_to_json(manifest: Manifest) -> dict[str, object]:
    body = asdict(manifest)
    if manifest.ends == "node":
        del body["ends"]  # the default, and what readers without the word take for granted
    return {"format": _FORMAT, "version": _VERSION, **body}


def _manifest(body: Mapping[str, object]) -> Manifest:
    manifest = Fields(body, "manifest")
    manifest.take("format", fields.one_of(_FORMAT))
    manifest.take("version", fields.within(_VERSION, _VERSION))
    result = Manifest(
        mode=manifest.take("mode", fields.one_of("ee")),
        fingerprint=manifest.take("fingerprint", fields.hex_digits(32)),
        vocab_size=manifest.take("vocab_size", fields.within(1, 2**31)),
        weights_root=manifest.take("weights_root", fields.hex_digits(64)),
        ends=cast(Ends, manifest.take("ends", fields.one_of(*get_args(Ends)), "node")),
    )
    manifest.finish()
    return result
