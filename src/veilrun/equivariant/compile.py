"""A plain checkpoint and a key become an encrypted checkpoint of the same architecture.

The result loads on a stock engine with plain `AutoModelForCausalLM.from_pretrained`, without
remote code; no tokenizer is in it. Memory: a few times the largest tensors, one per core, never
the model. Deterministic: the same key, model and strength give the same bytes on the same
machine and software (the permutation of ids on all of them; rotations go through the machine's
linear algebra).

Steps: 1 open, plan and refuse; 2 read once for the digest; 3 stream; 4 config, manifest,
client kit. Both folders appear whole or not at all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from veilrun import atomic
from veilrun.checkpoint import merkle
from veilrun.checkpoint.folder import (
    CONFIG_FILE,
    GENERATION_CONFIG_FILE,
    INDEX_FILE,
    Checkpoint,
    encode_json,
    read_json,
)
from veilrun.checkpoint.format import SafetensorsWriter
from veilrun.checkpoint.source import resolve
from veilrun.equivariant.client import facts_of, write_kit
from veilrun.equivariant.codec import Codec
from veilrun.equivariant.families import family_of
from veilrun.equivariant.families.table import Family, Shape
from veilrun.equivariant.groups import Strength
from veilrun.equivariant.parallel import in_parallel
from veilrun.equivariant.plan import Job, Plan, make_plan
from veilrun.equivariant.settings import encrypted_config, encrypted_generation_config
from veilrun.equivariant.spaces import Spaces
from veilrun.equivariant.tensors import as_bytes
from veilrun.equivariant.transform import transform
from veilrun.errors import CheckpointError, UnsupportedModel
from veilrun.keys import MasterKey
from veilrun.wire.manifest import MANIFEST_FILE, Manifest, encode_manifest

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
    strength: Strength | None = None,
    on_bytes: OnBytes = lambda phase, done, total: None,
) -> Encryption:
    """Encrypt checkpoint `model` (a folder or a hub id) into the new folder `out`.

    kits: the folder of client kits, `client.kits_folder(key_file)`; the kit of this
        checkpoint goes to `kits/<fingerprint>`.
    strength: how the residual stream is hidden, see `groups.Strength`. None: structured, where
        the architecture allows it.

    Raises:
        UnsupportedModel: architecture, parameters or dtypes without a private form, all named;
            or a `strength` that the architecture does not allow.
        RefusedError: the weights are pickles.
        CheckpointError: files damaged, or contradicting each other.
        UsageError: `out` exists.
        StorageError: the disk is full. In every case nothing is left behind.
    """
    with ExitStack() as stack:
        target = stack.enter_context(atomic.new_folder(out))
        plain = stack.enter_context(Checkpoint(resolve(model, before_weights=_check_family)))
        family, shape, config = _read_config(plain)
        strength = _allowed(strength, family)
        tied = bool(getattr(config, "tie_word_embeddings", False))
        plan = make_plan(plain, family, shape, tied=tied, folds=strength != "permutation")
        count = _Counter(on_bytes, plain.n_bytes)
        digest = merkle.weights_root(plain, lambda n: count.add("digest", n)).hex()
        codec = Codec(key, digest, family.name, shape.vocab_size)
        files = _settings(plain, config, plan, codec)
        spaces = Spaces(key, digest, family, shape, strength)
        root = _write_weights(plain, plan, spaces, target, count)
        manifest = Manifest("ee", codec.fingerprint, shape.vocab_size, root.hex())
        files[MANIFEST_FILE] = encode_manifest(manifest)
        for name, body in files.items():
            atomic.write_file(target / name, body)
        kit = kits / codec.fingerprint
        facts = facts_of(plain, _public_name(model), digest, family.name, config)
        write_kit(stack.enter_context(atomic.new_folder(kit, replace=True)), plain, facts)
        return Encryption(
            folder=out,
            client=kit,
            fingerprint=codec.fingerprint,
            weights_root=root.hex(),
            family=family.name,
            strength=strength,
            untied=plan.untied,
            n_tensors=sum(map(len, plan.shards.values())),
            n_bytes=plain.n_bytes,
        )


def _allowed(wanted: Strength | None, family: Family) -> Strength:
    if not family.carries:
        return wanted or "structured"
    if wanted in (None, "permutation"):
        return "permutation"
    raise UnsupportedModel(
        f"family {family.name} carries gains on its residual stream, which leaves only "
        f"permutations to hide it: strength {wanted!r} is not possible"
    )


def _public_name(model: str | Path) -> str:
    """What apps call the model: its hub id, or its folder's name."""
    return Path(model).resolve().name if Path(model).is_dir() else str(model)


def _check_family(folder: Path) -> None:
    """Refuse an unknown architecture before gigabytes of it are fetched."""
    family_of(read_json(folder / CONFIG_FILE).get("model_type"))


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


def _settings(plain: Checkpoint, config: Any, plan: Plan, codec: Codec) -> dict[str, bytes]:
    """The encrypted checkpoint's config files, by name."""
    encoded = encrypted_config(
        plain.config, config, plan.family, codec.encode_one, untie=plan.untied
    )
    files = {CONFIG_FILE: encode_json(encoded)}
    if plain.generation_config is not None:
        generation = encrypted_generation_config(
            plain.generation_config, codec.encode_one, codec.vocab_size
        )
        files[GENERATION_CONFIG_FILE] = encode_json(generation)
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
