"""A checkpoint folder as Hugging Face lays it out: config files and one or many shards."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from veilrun.checkpoint.format import SafetensorsFile, TensorInfo
from veilrun.errors import CheckpointError, DecodeError, RefusedError
from veilrun.wire import fields
from veilrun.wire.manifest import MANIFEST_FILE, Manifest, decode_manifest

SINGLE_FILE: Final = "model.safetensors"
INDEX_FILE: Final = "model.safetensors.index.json"
CONFIG_FILE: Final = "config.json"
GENERATION_CONFIG_FILE: Final = "generation_config.json"

TOKENIZER_FILES: Final = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
"""What only the trusted side may hold: any of them lets a host read ids as text."""

_PICKLE_PATTERNS: Final = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


class Checkpoint:
    """An open checkpoint: config dictionaries and every tensor's place.

    Raises on opening:
        RefusedError: the weights are pickles; opening one runs its code.
        CheckpointError: files are missing, truncated, damaged, or contradict the index.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not folder.is_dir():
            raise CheckpointError(f"{folder} is not a folder")
        self.config = read_json(folder / CONFIG_FILE)
        generation_config = folder / GENERATION_CONFIG_FILE
        self.generation_config = (
            read_json(generation_config) if generation_config.exists() else None
        )
        self.shards: dict[str, SafetensorsFile] = {}
        self._shard_of: dict[str, SafetensorsFile] = {}
        try:
            self._open_shards()
        except CheckpointError:
            self.close()
            raise

    def _open_shards(self) -> None:
        for shard_name in self._shard_names():
            shard = self.shards[shard_name] = SafetensorsFile(self.folder / shard_name)
            for name in shard.infos:
                if name in self._shard_of:
                    raise CheckpointError(f"{self.folder}: tensor {name} is stored twice")
                self._shard_of[name] = shard
        self._check_index()

    def __iter__(self) -> Iterator[str]:
        return iter(self._shard_of)

    def __contains__(self, name: object) -> bool:
        return name in self._shard_of

    def __getitem__(self, name: str) -> TensorInfo:
        return self._shard_of[name].infos[name]

    @property
    def n_bytes(self) -> int:
        """Size of all tensors."""
        return sum(self[name].n_bytes for name in self)

    def shard_name(self, name: str) -> str:
        """The file that holds tensor `name`."""
        return self._shard_of[name].path.name

    def read(self, name: str) -> bytearray:
        """The exact bytes of tensor `name`."""
        return self._shard_of[name].read(name)

    def read_range(self, name: str, start: int, stop: int) -> bytearray:
        """Bytes `start` to `stop` of tensor `name`."""
        return self._shard_of[name].read_range(name, start, stop)

    def close(self) -> None:
        """Release all files."""
        for shard in self.shards.values():
            shard.close()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _shard_names(self) -> list[str]:
        index = self.folder / INDEX_FILE
        if index.exists():
            weight_map = self._weight_map()
            names = sorted(set(weight_map.values()))
            if any(Path(name).name != name for name in names):
                raise CheckpointError(f"{index} names files outside its folder")
            missing = [name for name in names if not (self.folder / name).exists()]
            if missing:
                raise CheckpointError(f"{self.folder} lacks the shards {', '.join(missing)}")
            return names
        if (self.folder / SINGLE_FILE).exists():
            return [SINGLE_FILE]
        pickles = pickle_files(self.folder)
        if pickles:
            raise RefusedError(
                f"{self.folder} holds its weights as pickles ({', '.join(pickles)}), which run "
                "code when opened; convert them to safetensors with a tool you trust"
            )
        raise CheckpointError(f"{self.folder} holds neither {SINGLE_FILE} nor {INDEX_FILE}")

    def _weight_map(self) -> dict[str, str]:
        weight_map = read_json(self.folder / INDEX_FILE).get("weight_map")
        if not isinstance(weight_map, dict) or not all(map(_is_text, weight_map.values())):
            raise CheckpointError(f"{self.folder / INDEX_FILE} has no weight_map")
        return weight_map

    def _check_index(self) -> None:
        if INDEX_FILE not in {path.name for path in self.folder.iterdir()}:
            return
        weight_map = self._weight_map()
        wrong = sorted(
            name
            for name in weight_map.keys() | self._shard_of.keys()
            if name not in self._shard_of or weight_map.get(name) != self.shard_name(name)
        )
        if wrong:
            raise CheckpointError(
                f"{self.folder}: index and shards disagree on {', '.join(wrong[:8])}"
            )


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file of a checkpoint."""
    try:
        return fields.json_object(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    except DecodeError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error


def read_manifest(folder: Path) -> Manifest:
    """What the encrypted checkpoint in `folder` says of itself.

    Raises:
        CheckpointError: there is no manifest, or it does not parse.
    """
    path = folder / MANIFEST_FILE
    try:
        return decode_manifest(path.read_bytes())
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{folder} has no {MANIFEST_FILE}: it is not an encrypted checkpoint"
        ) from error
    except DecodeError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error


def pickle_files(folder: Path) -> list[str]:
    """The files of `folder` that are weights in pickle form, by name."""
    return sorted({path.name for pattern in _PICKLE_PATTERNS for path in folder.glob(pattern)})


def tokenizer_files(folder: Path) -> list[str]:
    """The tokenizer files of `folder`, by name."""
    return [name for name in TOKENIZER_FILES if (folder / name).exists()]


def encode_json(value: dict[str, Any]) -> bytes:
    """JSON as Hugging Face writes it: indented, keys in the order given."""
    return json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n"


def _is_text(value: object) -> bool:
    return isinstance(value, str)
