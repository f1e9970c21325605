"""The encrypted checkpoint's config files: what the engine needs to compute, and nothing else.

A plain config.json may name the base model, hold text, or hold token ids in fields of any
name. So nothing is copied that is not known: fields of the architecture's own configuration
class, their older spellings, and for generation the numbers that shape sampling. Token ids
follow the vocabulary's permutation.

Invariant: the engine reads the same architecture from the result as from the plain file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from veilrun.equivariant.families.table import Family
from veilrun.errors import CheckpointError, UnsupportedModel

_ID_FIELDS: Final = frozenset(
    {
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "decoder_start_token_id",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "suppress_tokens",
        "begin_suppress_tokens",
        "bad_words_ids",
    }
)

_OTHER_SPELLINGS: Final = frozenset(
    {
        "head_dim",
        "torch_dtype",
        "rope_theta",
        "rope_scaling",
        "rope_local_base_freq",
        "partial_rotary_factor",
        "rotary_pct",
        "rotary_emb_base",
        "sliding_window_pattern",
        "hidden_act",
    }
)
"""Older names of today's fields, and one that models read although their class has it not."""

_NOT_THE_ENGINES: Final = frozenset(
    {"_name_or_path", "id2label", "label2id", "problem_type", "task_specific_params"}
)

_GENERATION_NUMBERS: Final = frozenset(
    {
        "do_sample",
        "temperature",
        "top_k",
        "top_p",
        "min_p",
        "typical_p",
        "repetition_penalty",
        "no_repeat_ngram_size",
        "max_length",
        "max_new_tokens",
        "min_length",
        "min_new_tokens",
        "num_beams",
        "use_cache",
        "transformers_version",
    }
)

EncodeOne = Callable[[int], int]


def encrypted_config(
    plain: Mapping[str, Any],
    parsed: Any,
    family: Family,
    encode_one: EncodeOne,
    *,
    untie: bool,
    hidden: int | None = None,
) -> dict[str, Any]:
    """The encrypted config.json. `parsed` is transformers' configuration object of `plain`.

    hidden: the width of a residual stream that got longer; the heads keep theirs.

    Raises:
        UnsupportedModel: a field that the architecture needs is not one that we know.
        CheckpointError: a token id that is none.
    """
    known = _class_fields(parsed) | _OTHER_SPELLINGS | {"architectures", "model_type"}
    kept = {k: v for k, v in plain.items() if k in known - _NOT_THE_ENGINES}
    _check_same_architecture(parsed, type(parsed).from_dict(dict(kept)), family)
    if untie:
        kept["tie_word_embeddings"] = False
    if hidden is not None:
        kept |= {"hidden_size": hidden, "head_dim": family.shape(parsed).head_dim}
    return _with_cipher_ids(kept, encode_one, parsed.vocab_size)


def without_ends(encrypted: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of a checkpoint without embedding and head: ids mean nothing to it.

    Engines make an embedding whatever the checkpoint holds; one row is the smallest.
    """
    no_ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    kept = {k: v for k, v in encrypted.items() if k not in _ID_FIELDS}
    return {**kept, **no_ids, "vocab_size": 1, "tie_word_embeddings": False}


def encrypted_generation_config(
    plain: Mapping[str, Any], encode_one: EncodeOne, vocab_size: int
) -> dict[str, Any]:
    """The encrypted generation_config.json: ids and numbers; texts stay with the client."""
    kept = {k: v for k, v in plain.items() if k in _ID_FIELDS | _GENERATION_NUMBERS}
    return _with_cipher_ids(kept, encode_one, vocab_size)


def _class_fields(parsed: Any) -> frozenset[str]:
    return frozenset(type(parsed)().to_dict())


def _check_same_architecture(parsed: Any, again: Any, family: Family) -> None:
    wanted, got = parsed.to_dict(), again.to_dict()
    fields = sorted(_class_fields(parsed) - _NOT_THE_ENGINES)
    lost = [name for name in fields if got.get(name) != wanted.get(name)]
    if family.shape(again) != family.shape(parsed):
        lost.append("its sizes")
    if lost:
        raise UnsupportedModel(f"config.json sets {', '.join(lost)} by fields unknown to us")


def _with_cipher_ids(
    config: Mapping[str, Any], encode_one: EncodeOne, vocab_size: int
) -> dict[str, Any]:
    def ids(value: Any, name: str) -> Any:
        if isinstance(value, list):
            return [ids(one, name) for one in value]
        if value is None or value == -1:  # both are written for "none"
            return value
        if type(value) is not int or not 0 <= value < vocab_size:
            raise CheckpointError(f"{name} = {value!r} is not a token id below {vocab_size}")
        return encode_one(value)

    return {k: ids(v, k) if k in _ID_FIELDS else v for k, v in config.items()}
