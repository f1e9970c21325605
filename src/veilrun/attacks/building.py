"""From an encrypted folder to a subject: the truth from the key, the rest as attackers have it.

1. The encrypted folder must be what its manifest says; its key's kit gives the true order.
2. The base is the model itself, or what it was fine-tuned from if its digest is another.
3. Both are read as tables, and loaded to run.
4. Texts: the user's, or what the base writes.
5. Two hosts: a second copy of the model under another key, which follows from the first one so
   that an audit can be resumed. Only where the base is the model itself and the ends are on the
   node.

Nothing that is made here stays on disk.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from veilrun.attacks.holdings import Model
from veilrun.attacks.middle import node_view, whole_model
from veilrun.attacks.runs import Engine
from veilrun.attacks.subject import Copy, Subject
from veilrun.attacks.texts import Texts, gather_texts
from veilrun.attacks.weights import Ids, Weights, read_weights
from veilrun.checkpoint import merkle
from veilrun.checkpoint.folder import Checkpoint, read_manifest
from veilrun.equivariant.client import ClientKit, find_client_kit, open_kit
from veilrun.equivariant.compile import encrypt
from veilrun.equivariant.covariant import Noise
from veilrun.equivariant.families import family_of
from veilrun.equivariant.families.table import Family
from veilrun.equivariant.groups import Strength
from veilrun.equivariant.spaces import Spaces
from veilrun.errors import CheckpointError, UsageError
from veilrun.keys import MasterKey

_SAMPLE = 256
_CLIENT_ENDS = "; embedding and head stay with the client"


@dataclass(frozen=True, eq=False)
class _Public:
    """The base: its folder, its digest as kits write it, its family and tables."""

    folder: Path
    digest: str
    family: Family
    weights: Weights


@dataclass(frozen=True, slots=True)
class _Protection:
    """How the residual stream is hidden: by a strength, or by noise."""

    strength: Strength | None
    noise: Noise | None

    @property
    def words(self) -> str:
        """For cards."""
        if self.noise is None:
            return f"ee, residual key {self.strength}"
        return (
            f"ee, noise {self.noise.embedding:g} on the embedding and {self.noise.head:g} on the "
            f"head, stream longer by 2 x {self.noise.expansion}"
        )


def build(
    out: Path, key_file: Path, key: MasterKey, base: Path, text: Path | None = None
) -> Subject:
    """The subject of the encrypted folder `out`, whose kit is beside `key_file`.

    base: the plain checkpoint's folder. text: documents, as `texts` takes them.

    Raises:
        KeyFileError: the folder was made with another key.
        CheckpointError: damaged files.
        UsageError: `base` cannot be its base; `text` cannot be used.
    """
    kit = _open(out, key_file, key)  # 1
    public = _read_base(base)  # 2
    _verify_family(public, kit)
    sealed = _read_sealed(out, kit, public)  # 3
    _verify_base(public, kit, sealed.weights)
    order = _order(kit)
    protection = _protection(key, kit, public, sealed.weights, order)
    engine = Engine(base)
    texts = gather_texts(base, engine, text)  # 4
    fine_tuned = public.digest != kit.facts.digest
    alone = fine_tuned or kit.ends_file is not None
    tokenizer = _tokenizer(kit)
    return Subject(
        name=kit.name,
        mode=protection.words + ("" if kit.ends_file is None else _CLIENT_ENDS),
        sealed=_as_node_has_it(Copy(sealed, order), kit, texts),
        base=Model(public.weights, engine),
        words=lambda ids: str(tokenizer.decode(list(ids), skip_special_tokens=True)),
        secret=texts.secret,
        corpora=texts.corpora,
        fine_tuned=fine_tuned,
        copies=() if alone else (_second_copy(key, base, protection),),  # 5
        special=frozenset(tokenizer.all_special_ids) | frozenset(kit.eos_token_ids),
    )


def _open(out: Path, key_file: Path, key: MasterKey) -> ClientKit:
    manifest = read_manifest(out)
    kit = find_client_kit(key_file, key, manifest.fingerprint)
    with Checkpoint(out) as checkpoint:
        found = merkle.weights_root(checkpoint).hex()
    if found != manifest.weights_root:
        raise CheckpointError(f"the weights in {out} are not those that its manifest names")
    return kit


def _read_base(folder: Path) -> _Public:
    with Checkpoint(folder) as checkpoint:
        family = family_of(checkpoint.config.get("model_type"))
        digest = merkle.weights_root(checkpoint).hex()
    return _Public(folder, digest, family, read_weights(folder))


def _read_sealed(out: Path, kit: ClientKit, public: _Public) -> Model:
    """The encrypted model; where its ends are with the client, put together with them."""
    if kit.ends_file is None:
        return Model(read_weights(out), Engine(out))
    return whole_model(out, kit.ends_file, public.family)


def _as_node_has_it(copy: Copy, kit: ClientKit, texts: Texts) -> Copy:
    """Without what stays with the client."""
    if kit.ends_file is None:
        return copy
    traffic = [copy.encode(text) for text in texts.secret]
    return Copy(node_view(copy.model, traffic), copy.order)


def _verify_family(public: _Public, kit: ClientKit) -> None:
    if public.family.name != _family_word(kit):
        raise UsageError(
            f"{public.folder} is not the base of this model: it is {public.family.name}, "
            f"the model is {_family_word(kit)}"
        )


def _verify_base(public: _Public, kit: ClientKit, sealed: Weights) -> None:
    ours, theirs = sealed, public.weights
    fits = (
        len(theirs.layers) == len(ours.layers)
        and theirs.vocab_size == ours.vocab_size
        and (theirs.hidden == ours.hidden or _noise(kit) is not None)
    )
    if not fits:
        raise UsageError(
            f"{public.folder} is not the base of this model: it has {len(theirs.layers)} layers, "
            f"{theirs.vocab_size} tokens, hidden size {theirs.hidden}; the model has "
            f"{len(ours.layers)}, {ours.vocab_size}, {ours.hidden}"
        )


def _order(kit: ClientKit) -> Ids:
    return np.array(kit.codec.decode(range(kit.codec.vocab_size)), np.int64)


def _protection(
    key: MasterKey, kit: ClientKit, public: _Public, sealed: Weights, order: Ids
) -> _Protection:
    """Noise as the kit's label has it; else the strength whose key takes the base's embedding
    nearest to the sealed one: a fine-tune's differs a little, another key's altogether.
    """
    noise = _noise(kit)
    if noise is not None:
        return _Protection(None, noise)
    if public.family.carries:
        return _Protection("permutation", None)
    known, shape = public.weights.embedding, public.weights.shape
    rows = torch.from_numpy(known[order[:_SAMPLE]].T.copy())

    def distance(strength: Strength) -> float:
        label = kit.facts.family
        spaces = Spaces(key, kit.facts.digest, label, public.family, shape, strength)
        moved = spaces.of("residual", shape.hidden, None, None).write(rows).numpy().T
        return float(np.linalg.norm(moved - sealed.embedding[:_SAMPLE]))

    strengths: tuple[Strength, ...] = get_args(Strength)
    nearest: Strength = min(strengths, key=distance)
    return _Protection(nearest, None)


def _family_word(kit: ClientKit) -> str:
    return kit.facts.family.split("; ")[0]


def _noise(kit: ClientKit) -> Noise | None:
    """From the kit's label: "llama; covariant 1.0 0.2 128"."""
    for part in kit.facts.family.split("; ")[1:]:
        word, *numbers = part.split()
        if word == "covariant":
            embedding, head, expansion = numbers
            return Noise(float(embedding), float(head), int(expansion))
    return None


def _tokenizer(kit: ClientKit) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(kit.tokenizer_folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{kit.tokenizer_folder} holds no usable tokenizer") from error


def _second_copy(key: MasterKey, plain: Path, protection: _Protection) -> Copy:
    other = MasterKey(key.derive("red team", "second copy"))
    with tempfile.TemporaryDirectory(prefix="veilrun-audit-") as scratch:
        made = encrypt(
            plain,
            Path(scratch) / "copy",
            other,
            kits=Path(scratch) / "kits",
            strength=protection.strength,
            noise=protection.noise,
        )
        kit = open_kit(made.client, other, made.fingerprint)
        return Copy(Model(read_weights(made.folder)), _order(kit))
