"""A plain checkpoint and a key become an encrypted checkpoint of the same architecture.

The result loads on a stock engine with plain `AutoModelForCausalLM.from_pretrained`, without
remote code; no tokenizer is in it. Memory: the largest tensor a few times over, never the
model. Deterministic: the same key, model and strength give the same bytes.

Steps: 1 open and refuse; 2 read once for the digest; 3 plan; 4 stream; 5 config, manifest,
client kit. Both folders appear whole or not at all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from veilrun import atomic
from veilrun.checkpoint import merkle
from veilrun.checkpoint.folder import (
    CONFIG_FILE,
    GENERATION_CONFIG_FILE,
    INDEX_FILE,
    Checkpoint,
    encode_json,
)
from veilrun.checkpoint.format import SafetensorsWriter
from veilrun.checkpoint.source import resolve
from veilrun.equivariant.client import facts_of, write_kit
from veilrun.equivariant.codec import Codec
from veilrun.equivariant.families import family_of
from veilrun.equivariant.families.table import Family, HeadNorm, Norm, Shape
from veilrun.equivariant.groups import Strength
from veilrun.equivariant.ids import encode_ids
from veilrun.equivariant.parallel import in_parallel
from veilrun.equivariant.plan import Job, Plan, make_plan
from veilrun.equivariant.spaces import Residual, Spaces
from veilrun.equivariant.tensors import as_bytes
from veilrun.equivariant.transform import transform
from veilrun.errors import CheckpointError, UnsupportedModel
from veilrun.keys import MasterKey
from veilrun.wire.manifest import MANIFEST_FILE, Manifest, encode_manifest

_NAMES_THE_BASE: Final = ("_name_or_path", "auto_map", "_commit_hash")
"""Fields of config.json that would tell a host which public model this was."""

OnBytes = Callable[[str, int, int], None]
"""Progress: phase ("digest" or "encrypt"), bytes done, bytes in all."""


@dataclass(frozen=True, slots=True)
class Encryption:
    """What `encrypt` made. n_bytes: size of the plain tensors."""

    folder: Path
    client: Path
    fingerprint: str
    weights_root: str
    family: str
    strength: Strength
    untied: bool
    n_tensors: int
    n_bytes: int


def encrypt(
    model: str | Path,
    out: Path,
    key: MasterKey,
    *,
    kits: Path,
    strength: Strength = "structured",
    on_bytes: OnBytes = lambda phase, done, total: None,
) -> Encryption:
    """Encrypt checkpoint `model` (a folder or a hub id) into the new folder `out`.

    kits: the folder of client kits, `client.kits_folder(key_file)`; the kit of this
        checkpoint goes to `kits/<fingerprint>`.
    strength: how the residual stream is hidden; see `groups.Strength`.

    Raises:
        UnsupportedModel: architecture, parameters or dtypes without a private form, all named.
        RefusedError: the weights are pickles.
        CheckpointError: files damaged, or contradicting each other.
        UsageError: `out` exists.
        StorageError: the disk is full. In every case nothing is left behind.
    """
    with Checkpoint(resolve(model)) as plain, ExitStack() as stack:
        family, shape, config = _read_config(plain)
        target = stack.enter_context(atomic.new_folder(out))
        count = _Counter(on_bytes, plain.n_bytes)
        digest = merkle.weights_root(plain, lambda n: count.add("digest", n)).hex()
        spaces = make_spaces(key, digest, family, shape, strength)
        tied = bool(getattr(config, "tie_word_embeddings", False))
        plan = make_plan(plain, family, shape, tied=tied, folds=spaces.folds)
        codec = Codec(key, digest, family.name, shape.vocab_size)
        settings = _settings(plain, plan, codec)
        root = _write_weights(plain, plan, spaces, target, count)
        manifest = Manifest("ee", codec.fingerprint, shape.vocab_size, root.hex())
        for name, body in settings.items():
            atomic.write_file(target / name, body)
        atomic.write_file(target / MANIFEST_FILE, encode_manifest(manifest))
        kit = kits / codec.fingerprint
        if not kit.exists():  # the same key and model always give the same kit
            name = str(model) if not Path(model).is_dir() else Path(model).resolve().name
            facts = facts_of(plain, name, digest, family.name, config)
            write_kit(stack.enter_context(atomic.new_folder(kit)), plain, facts)
        return Encryption(
            folder=out,
            client=kit,
            fingerprint=codec.fingerprint,
            weights_root=root.hex(),
            family=family.name,
            strength=spaces.strength,
            untied=plan.untied,
            n_tensors=sum(map(len, plan.shards.values())),
            n_bytes=plain.n_bytes,
        )


def make_spaces(
    key: MasterKey, digest: str, family: Family, shape: Shape, strength: Strength
) -> Spaces:
    """The secret maps of one model; which groups they come from follows from the table."""
    norms = [row for row in family.rows if isinstance(row, Norm)]
    residual = Residual(
        layer_norm=any(norm.kind == "layer" for norm in norms),
        carried=family.carries,
    )
    head_norms = any(isinstance(row, HeadNorm) for row in family.rows)
    return Spaces(key, digest, family.name, shape, residual, strength, head_norms=head_norms)


def _read_config(plain: Checkpoint) -> tuple[Family, Shape, Any]:
    """The family and sizes of a checkpoint, and its transformers configuration."""
    family = family_of(plain.config.get("model_type"))
    if "quantization_config" in plain.config:
        raise UnsupportedModel("quantised weights have no private form; encrypt the original")
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(plain.folder, local_files_only=True)
        return family, family.shape(config), config
    except (StrictDataclassError, ValueError, TypeError, ArithmeticError, LookupError) as error:
        raise CheckpointError(f"{plain.folder / CONFIG_FILE} cannot be used: {error}") from error


def _settings(plain: Checkpoint, plan: Plan, codec: Codec) -> dict[str, bytes]:
    """The encrypted checkpoint's config files, by name."""
    config = {k: v for k, v in plain.config.items() if k not in _NAMES_THE_BASE}
    if plan.untied:
        config["tie_word_embeddings"] = False
    files = {CONFIG_FILE: encode_json(encode_ids(config, codec.encode_one, codec.vocab_size))}
    if plain.generation_config is not None:
        generation = {k: v for k, v in plain.generation_config.items() if k not in _NAMES_THE_BASE}
        encoded = encode_ids(generation, codec.encode_one, codec.vocab_size)
        files[GENERATION_CONFIG_FILE] = encode_json(encoded)
    return files


def _write_weights(
    plain: Checkpoint, plan: Plan, spaces: Spaces, target: Path, count: _Counter
) -> bytes:
    """Stream every shard; the Merkle root of what was written."""
    leaves: dict[str, bytes] = {}
    weight_map: dict[str, str] = {}
    for shard, jobs in plan.shards.items():
        names = {job: _target_name(job, spaces) for job in jobs}
        infos = [(names[job], plain[job.source].dtype, plain[job.source].shape) for job in jobs]
        with SafetensorsWriter(target / shard, infos) as writer:

            def write(job: Job, writer: SafetensorsWriter = writer, names: Any = names) -> bytes:
                data = as_bytes(transform(plain, job, spaces))
                writer.write(names[job], data)
                count.add("encrypt", data.nbytes)
                return merkle.leaf(writer.infos[names[job]], hashlib.sha256(data).digest())

            leaves |= zip(names.values(), in_parallel(write, jobs), strict=True)
        weight_map |= dict.fromkeys(names.values(), shard)
    if (plain.folder / INDEX_FILE).exists():
        total = sum(plain[job.source].n_bytes for jobs in plan.shards.values() for job in jobs)
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        atomic.write_file(target / INDEX_FILE, encode_json(index))
    return merkle.root(leaves)


def _target_name(job: Job, spaces: Spaces) -> str:
    expert = job.found.expert
    if expert is None:
        return job.target(None)
    order = spaces.expert_order(job.found.layer).tolist()
    return job.target(order.index(expert))


class _Counter:
    """Adds up bytes for `on_bytes`, phase by phase."""

    def __init__(self, on_bytes: OnBytes, total: int) -> None:
        self._on_bytes, self._total = on_bytes, total
        self._done: dict[str, int] = {}

    def add(self, phase: str, n_bytes: int) -> None:
        """Report `n_bytes` more of `phase`."""
        self._done[phase] = self._done.get(phase, 0) + n_bytes
        self._on_bytes(phase, min(self._done[phase], self._total), self._total)
