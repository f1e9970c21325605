"""A plain checkpoint and a key become an encrypted checkpoint of the same architecture.

The result loads on a stock engine with plain `AutoModelForCausalLM.from_pretrained`, without
remote code; no tokenizer is in it. Memory: a few times the largest tensors, one per core, never
the model. Deterministic: the same key, model and strength give the same bytes on the same
machine and software (the permutation of ids on all of them; rotations go through the machine's
linear algebra).

Steps: 1 open, plan and refuse; 2 read once for the digest; 3 stream; 4 config, manifest,
client kit. Both folders appear whole or not at all.

With `ends="client"` embedding and head go into the client kit instead, and what the node gets
is the middle of a model. With `noise` the residual stream gets longer, and the result is an
approximation (`covariant`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

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
from veilrun.equivariant.client import ENDS_FILE, ClientKit, facts_of, write_kit
from veilrun.equivariant.codec import Codec
from veilrun.equivariant.covariant import Noise
from veilrun.equivariant.families import family_of
from veilrun.equivariant.families.table import Embedding, Family, Shape
from veilrun.equivariant.groups import Strength
from veilrun.equivariant.parallel import in_parallel
from veilrun.equivariant.plan import Job, Plan, make_plan
from veilrun.equivariant.settings import (
    encrypted_config,
    encrypted_generation_config,
    without_ends,
)
from veilrun.equivariant.spaces import Spaces
from veilrun.equivariant.tensors import as_bytes
from veilrun.equivariant.transform import sealed_shape, transform
from veilrun.errors import CheckpointError, UnsupportedModel, UsageError
from veilrun.keys import MasterKey
from veilrun.wire.manifest import MANIFEST_FILE, Ends, Manifest, encode_manifest

OnBytes = Callable[[str, int, int], None]
"""Progress: phase ("digest" or "encrypt"), bytes done, bytes in all."""


@dataclass(frozen=True, slots=True)
class Encryption:
    """What `encrypt` made. n_bytes: size of the plain tensors.

    client: the kit that reads its ids; of a draft, the kit of the model that it drafts for.
    """

    folder: Path
    client: Path
    fingerprint: str
    weights_root: str
    family: str
    strength: Strength | Literal["covariant"]
    noise: Noise | None
    ends: Ends
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
    noise: Noise | None = None,
    ends: Ends = "node",
    draft_of: ClientKit | None = None,
    on_bytes: OnBytes = lambda phase, done, total: None,
) -> Encryption:
    """Encrypt checkpoint `model` (a folder or a hub id) into the new folder `out`.

    kits: the folder of client kits, `client.kits_folder(key_file)`.
    strength: how the residual stream is hidden, see `groups.Strength`. None: structured, where
        the architecture allows it.
    noise: hide it by a longer stream and noise instead, see `covariant`.
    ends: who holds embedding and head.
    draft_of: make a draft for this model instead, a smaller one that guesses its ids: the same
        permutation of the vocabulary, all other secrets its own, and no kit.

    Raises:
        UnsupportedModel: architecture, parameters or dtypes without a private form, all named;
            or a `strength`, `noise` or `ends` that the architecture does not allow.
        RefusedError: the weights are pickles.
        CheckpointError: files damaged, or contradicting each other.
        UsageError: `out` exists; both strength and noise are given; a draft has another
            vocabulary, or its ends at the client.
        StorageError: the disk is full. In every case nothing is left behind.
    """
    with ExitStack() as stack:
        target = stack.enter_context(atomic.new_folder(out))
        plain = stack.enter_context(Checkpoint(resolve(model, before_weights=_check_family)))
        work = _prepare(plain, strength, noise, ends, draft_of)
        count = _Counter(on_bytes, plain.n_bytes)
        digest = merkle.weights_root(plain, lambda n: count.add("digest", n)).hex()
        if draft_of is None:
            codec = Codec(key, digest, work.label, work.shape.vocab_size)
            spaces = work.spaces(key, digest)
            kit = kits / codec.fingerprint
            kit_part = stack.enter_context(atomic.new_folder(kit, replace=True))
        else:
            codec, kit = draft_of.codec, draft_of.folder
            spaces = work.spaces(key, digest, draft_of.vocabulary(key))
        files = _settings(plain, work, codec, spaces)
        if work.at_client:
            _write_ends(plain, work.at_client, spaces, kit_part, count)
        root = _write_weights(plain, work.plan, spaces, target, count)
        made = Manifest("ee", codec.fingerprint, codec.vocab_size, root.hex(), ends)
        files[MANIFEST_FILE] = encode_manifest(made)
        for name, body in files.items():
            atomic.write_file(target / name, body)
        if draft_of is None:
            name = _public_name(model)
            facts = facts_of(plain, name, digest, work.label, work.config, root.hex())
            write_kit(kit_part, plain, facts)
        return _made(work, plain, out, kit, made)


def _made(work: _Work, plain: Checkpoint, out: Path, kit: Path, manifest: Manifest) -> Encryption:
    return Encryption(
        folder=out,
        client=kit,
        fingerprint=manifest.fingerprint,
        weights_root=manifest.weights_root,
        family=work.family.name,
        strength="covariant" if work.noise else work.strength,
        noise=work.noise,
        ends=manifest.ends,
        untied=work.plan.untied,
        n_tensors=sum(map(len, work.plan.shards.values())),
        n_bytes=plain.n_bytes,
    )


@dataclass(frozen=True, slots=True)
class _Work:
    """What is to be done, all refusals behind us. config: transformers' configuration object.

    at_client: the jobs of embedding and head, where they stay with the client; `plan` has the
    others. label: the family's word in every derivation.
    """

    family: Family
    shape: Shape
    config: Any
    strength: Strength
    noise: Noise | None
    plan: Plan
    at_client: list[Job]
    label: str

    def spaces(
        self, key: MasterKey, digest: str, vocabulary: npt.NDArray[np.int64] | None = None
    ) -> Spaces:
        """The secret maps under `key`. vocabulary: another model's, for a draft."""
        return Spaces(
            key,
            digest,
            self.label,
            self.family,
            self.shape,
            self.strength,
            self.noise,
            vocabulary,
        )


def _prepare(
    plain: Checkpoint,
    strength: Strength | None,
    noise: Noise | None,
    ends: Ends,
    draft_of: ClientKit | None,
) -> _Work:
    if noise is not None and strength is not None:
        raise UsageError("a noisy copy has a residual key of its own: leave out the strength")
    family, shape, config = _read_config(plain)
    strength = _allowed(strength, family)
    noise = noise.fitted(family, shape) if noise else None
    if draft_of is not None:
        _check_draft(shape, draft_of, ends)
    if ends == "client" and not family.reads_rows:
        raise UnsupportedModel(f"family {family.name} has no form with its ends at the client")
    plan = make_plan(
        plain,
        family,
        shape,
        tied=bool(getattr(config, "tie_word_embeddings", False)),
        folds=strength != "permutation",
        unties=noise is not None or ends == "client",
    )
    plan, at_client = plan.parted() if ends == "client" else (plan, [])
    label = _label(family, noise, ends)
    if draft_of is not None:
        label = f"{label}; draft for {draft_of.codec.fingerprint}"
    return _Work(family, shape, config, strength, noise, plan, at_client, label)


def _check_draft(shape: Shape, target: ClientKit, ends: Ends) -> None:
    """Refuse what cannot guess a model's ids on the node."""
    if ends == "client":
        raise UsageError("a draft runs on the node: its ends cannot be at the client")
    if shape.vocab_size != target.codec.vocab_size:
        raise UsageError(
            f"a draft guesses in the model's own vocabulary of {target.codec.vocab_size} ids; this "
            f"one has {shape.vocab_size}"
        )


def _label(family: Family, noise: Noise | None, ends: Ends) -> str:
    """The family's word in every derivation. Kinds of copies share no secret, or one would
    show what another hides.
    """
    words = [family.name, noise.label if noise else "", "ends at client" * (ends == "client")]
    return "; ".join(filter(None, words))


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


def _settings(plain: Checkpoint, work: _Work, codec: Codec, spaces: Spaces) -> dict[str, bytes]:
    """The encrypted checkpoint's config files, by name."""
    hidden = spaces.sealed_size("residual", work.shape.hidden) if work.noise else None
    encoded = encrypted_config(
        plain.config,
        work.config,
        work.family,
        codec.encode_one,
        untie=work.plan.untied,
        hidden=hidden,
    )
    if work.at_client:
        return {CONFIG_FILE: encode_json(without_ends(encoded))}
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
    n_bytes = 0
    for shard, jobs in plan.shards.items():
        names = {job: _target_name(job, spaces) for job in jobs}
        written, n_written = _write_file(plain, names, spaces, target / shard, count)
        leaves |= written
        n_bytes += n_written
        weight_map |= dict.fromkeys(names.values(), shard)
    if (plain.folder / INDEX_FILE).exists():
        sizes = {"total_size": n_bytes}
        index = {"metadata": sizes, "weight_map": dict(sorted(weight_map.items()))}
        atomic.write_file(target / INDEX_FILE, encode_json(index))
    return merkle.root(leaves)


def _write_ends(
    plain: Checkpoint, jobs: list[Job], spaces: Spaces, kit: Path, count: _Counter
) -> None:
    """The client's tables, under the key, readable by their owner alone."""
    (kit / ENDS_FILE).touch(mode=0o600)
    names = {
        job: f"{'embedding' if isinstance(job.row, Embedding) else 'head'}.{job.found.part}"
        for job in jobs
    }
    _write_file(plain, names, spaces, kit / ENDS_FILE, count)


def _write_file(
    plain: Checkpoint, names: dict[Job, str], spaces: Spaces, path: Path, count: _Counter
) -> tuple[dict[str, bytes], int]:
    """Stream one file; the Merkle leaves of its tensors by name, and their size in bytes."""
    infos = [
        (name, plain[job.source].dtype, sealed_shape(plain, job, spaces))
        for job, name in names.items()
    ]
    with SafetensorsWriter(path, infos) as writer:

        def write(job: Job) -> bytes:
            data = as_bytes(transform(plain, job, spaces))
            writer.write(names[job], data)
            count.add("encrypt", data.nbytes)
            return merkle.leaf(writer.infos[names[job]], hashlib.sha256(data).digest())

        leaves = dict(zip(names.values(), in_parallel(write, list(names)), strict=True))
        return leaves, sum(info.n_bytes for info in writer.infos.values())


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
