"""What stays on the trusted side of one encrypted checkpoint: tokenizer, sizes, digest.

Layout: `KEY.client/<fingerprint>/` holds the plain model's tokenizer and config files and
`client.json`. With the key file beside it a proxy needs nothing else: no weights, no torch. Where
the ends stay with the client, `ends.safetensors` holds embedding and head, in the order of cipher
ids and under the residual key.

Invariant: a kit is used only with the key that it was made with; the fingerprint is computed
again from key and digest before anything is sent.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from veilrun.checkpoint.folder import (
    CONFIG_FILE,
    GENERATION_CONFIG_FILE,
    Checkpoint,
    read_json,
    tokenizer_files,
)
from veilrun.equivariant.codec import Codec, vocabulary_order
from veilrun.errors import DecodeError, KeyFileError
from veilrun.keys import MasterKey
from veilrun.wire import fields
from veilrun.wire.fields import Fields

CLIENT_FILE: Final = "client.json"
ENDS_FILE: Final = "ends.safetensors"
_FORMAT: Final = "veilrun-client-kit"
_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class ClientFacts:
    """The content of `client.json`.

    name: what apps call the model. digest: Merkle root of the *plain* weights, so this file
    stays on the trusted side. family: its word in every derivation, with what sets a noisy copy
    or one without ends apart. eos_token_ids: plain ids that end an answer. weights_root: Merkle
    root of the encrypted weights, which a node's evidence must be about.
    """

    name: str
    digest: str
    family: str
    vocab_size: int
    max_model_len: int
    eos_token_ids: tuple[int, ...]
    weights_root: str


@dataclass(frozen=True, slots=True)
class ClientKit:
    """The trusted side of one encrypted checkpoint, opened with its key."""

    folder: Path
    codec: Codec
    facts: ClientFacts

    @property
    def name(self) -> str:
        """What apps call the model."""
        return self.facts.name

    @property
    def max_model_len(self) -> int:
        """Prompt and answer together, in tokens."""
        return self.facts.max_model_len

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Plain ids that end an answer."""
        return self.facts.eos_token_ids

    @property
    def tokenizer_folder(self) -> Path:
        """Where the plain model's tokenizer files are."""
        return self.folder

    @property
    def weights_root(self) -> bytes:
        """Merkle root of the weights that the node must serve."""
        return bytes.fromhex(self.facts.weights_root)

    def vocabulary(self, key: MasterKey) -> npt.NDArray[np.int64]:
        """[vocab_size]: the permutation that drafts for this model share."""
        facts = self.facts
        return vocabulary_order(key, facts.digest, facts.family, facts.vocab_size)

    @property
    def ends_file(self) -> Path | None:
        """Embedding and head, where the node has neither."""
        path = self.folder / ENDS_FILE
        return path if path.exists() else None


def kits_folder(key_file: Path) -> Path:
    """The folder of all kits of a key, beside the key file."""
    return key_file.with_name(key_file.name + ".client")


def facts_of(
    checkpoint: Checkpoint, name: str, digest: str, family: str, config: Any, weights_root: str
) -> ClientFacts:
    """The facts of a plain checkpoint; `config` is its transformers configuration object.

    weights_root: of the encrypted one, in hex.
    """
    eos: list[Any] = []
    for source in (checkpoint.generation_config or {}, checkpoint.config):
        value = source.get("eos_token_id")
        eos += value if isinstance(value, list) else [value]
    return ClientFacts(
        name=name,
        digest=digest,
        family=family,
        vocab_size=config.vocab_size,
        max_model_len=config.max_position_embeddings,
        # null and -1 both say "none"
        eos_token_ids=tuple(dict.fromkeys(one for one in eos if one is not None and one >= 0)),
        weights_root=weights_root,
    )


def write_kit(folder: Path, checkpoint: Checkpoint, facts: ClientFacts) -> None:
    """Fill the empty `folder` with the kit of `checkpoint`."""
    for name in [*tokenizer_files(checkpoint.folder), CONFIG_FILE, GENERATION_CONFIG_FILE]:
        if (checkpoint.folder / name).exists():
            shutil.copyfile(checkpoint.folder / name, folder / name)
    body: Mapping[str, Any] = {"format": _FORMAT, "version": _VERSION, **asdict(facts)}
    (folder / CLIENT_FILE).write_text(json.dumps(body, indent=2) + "\n")


def list_kits(key_file: Path) -> list[tuple[str, str]]:
    """(fingerprint, name) of every checkpoint made with a key, by name; no passphrase needed.

    Raises:
        KeyFileError, CheckpointError: a kit is damaged.
    """
    found = []
    # What is being written begins with a dot.
    for facts_file in kits_folder(key_file).glob(f"[!.]*/{CLIENT_FILE}"):
        try:
            found.append((facts_file.parent.name, _decode(read_json(facts_file)).name))
        except DecodeError as error:
            raise KeyFileError(f"{facts_file} is damaged: {error}") from error
    return sorted(found, key=lambda kit: (kit[1], kit[0]))


def find_client_kit(key_file: Path, key: MasterKey, fingerprint: str) -> ClientKit:
    """The kit of the encrypted checkpoint with `fingerprint`.

    Raises:
        KeyFileError: the checkpoint was made with another key or from another model.
    """
    folder = kits_folder(key_file) / fingerprint
    if not (folder / CLIENT_FILE).exists():
        raise KeyFileError(
            f"the checkpoint with fingerprint {fingerprint} was not made with the key in "
            f"{key_file}, or its client kit is not in {kits_folder(key_file)}"
        )
    return open_kit(folder, key, fingerprint)


def open_kit(folder: Path, key: MasterKey, fingerprint: str) -> ClientKit:
    """Open one kit and hold it to `fingerprint`.

    Raises:
        KeyFileError: damaged, or made with another key or from another model.
    """
    try:
        facts = _decode(read_json(folder / CLIENT_FILE))
    except DecodeError as error:
        raise KeyFileError(f"{folder / CLIENT_FILE} is damaged: {error}") from error
    codec = Codec(key, facts.digest, facts.family, facts.vocab_size)
    if codec.fingerprint != fingerprint:
        raise KeyFileError(
            f"this key does not belong to the checkpoint: its fingerprint is {fingerprint}, "
            f"key and model give {codec.fingerprint}"
        )
    return ClientKit(folder, codec, facts)


def _decode(body: Mapping[str, Any]) -> ClientFacts:
    kit = Fields(body, "")
    kit.take("format", fields.one_of(_FORMAT))
    kit.take("version", fields.within(_VERSION, _VERSION))
    facts = ClientFacts(
        name=kit.take("name", fields.short_text),
        digest=kit.take("digest", fields.short_text),
        family=kit.take("family", fields.short_text),
        vocab_size=kit.take("vocab_size", fields.within(1, 2**31)),
        max_model_len=kit.take("max_model_len", fields.within(1, 2**31)),
        eos_token_ids=kit.take("eos_token_ids", fields.natural_numbers),
        weights_root=kit.take("weights_root", fields.hex_digits(64)),
    )
    kit.finish()
    return facts
