"""The encoder families that load, one table each, and the census of a checkpoint's parameters.

A table says how a family spells, in its parameter names and in its config.json, what every one
of them has: word and position tables, layers of attention and feed-forward with the norm after
the residual sum, and a classifier that reads the first token.

Invariant: `census` maps every parameter of the checkpoint to a place in the model or finds it
in the table's list of parameters without effect. Anything else is refused, all by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Final, Literal

from veilrun.errors import CheckpointError, UnsupportedModel

Kind = Literal["encoder", "classifier"]


@dataclass(frozen=True, slots=True)
class Embeddings:
    """Modules before the first layer. types: None where the family has no token types."""

    word: str
    position: str
    types: str | None
    norm: str


@dataclass(frozen=True, slots=True)
class Block:
    """Modules of one layer, after `Family.layer`."""

    query: str
    key: str
    value: str
    out: str
    norm_1: str
    up: str
    down: str
    norm_2: str


@dataclass(frozen=True, slots=True)
class Classifier:
    """Modules of the classifier: `out(activation(dense(first token)))`."""

    dense: str
    activation: Literal["tanh", "relu"]
    out: str


@dataclass(frozen=True, slots=True)
class Words:
    """What config.json calls the sizes. eps: None where the family fixes it."""

    hidden: str = "hidden_size"
    n_layers: str = "num_hidden_layers"
    n_heads: str = "num_attention_heads"
    intermediate: str = "intermediate_size"
    activation: str = "hidden_act"
    eps: str | None = "layer_norm_eps"


@dataclass(frozen=True, slots=True)
class Family:
    """One architecture.

    name: also `model_type` in config.json.
    prefix: what a classifier's checkpoint puts before the encoder's parameter names.
    layer: the modules of a layer start with it; `{layer}` is the layer's number.
    encoders, classifiers: the words of config.json's `architectures` that load as either.
    pads_first: positions count from `pad_token_id` + 1.
    unused: parameters that no output of a model of this kind depends on; they are not read.
    """

    name: str
    prefix: str
    embeddings: Embeddings
    layer: str
    block: Block
    classifier: Classifier
    encoders: tuple[str, ...]
    classifiers: tuple[str, ...]
    unused: Mapping[Kind, tuple[str, ...]]
    words: Words = Words()
    pads_first: bool = False


_BUFFERS: Final = ("embeddings.position_ids", "embeddings.token_type_ids")
"""Constants that old checkpoints store and engines recompute."""

_BERT_EMBEDDINGS: Final = Embeddings(
    word="embeddings.word_embeddings",
    position="embeddings.position_embeddings",
    types="embeddings.token_type_embeddings",
    norm="embeddings.LayerNorm",
)
_BERT_BLOCK: Final = Block(
    query="attention.self.query",
    key="attention.self.key",
    value="attention.self.value",
    out="attention.output.dense",
    norm_1="attention.output.LayerNorm",
    up="intermediate.dense",
    down="output.dense",
    norm_2="output.LayerNorm",
)


def _both(*modules: str) -> tuple[str, ...]:
    return tuple(f"{module}.{part}" for module in modules for part in ("weight", "bias"))


BERT: Final = Family(
    name="bert",
    prefix="bert.",
    embeddings=_BERT_EMBEDDINGS,
    layer="encoder.layer.{layer}.",
    block=_BERT_BLOCK,
    classifier=Classifier(dense="pooler.dense", activation="tanh", out="classifier"),
    encoders=("BertModel", "BertForMaskedLM", "BertForPreTraining"),
    classifiers=("BertForSequenceClassification",),
    unused={
        "classifier": _BUFFERS,
        "encoder": (
            *_BUFFERS,
            "cls.predictions.bias",
            *_both(
                "pooler.dense",
                "cls.predictions.transform.dense",
                "cls.predictions.transform.LayerNorm",
                "cls.predictions.decoder",
                "cls.seq_relationship",
            ),
        ),
    },
)

ROBERTA: Final = Family(
    name="roberta",
    prefix="roberta.",
    embeddings=_BERT_EMBEDDINGS,
    layer="encoder.layer.{layer}.",
    block=_BERT_BLOCK,
    classifier=Classifier(dense="classifier.dense", activation="tanh", out="classifier.out_proj"),
    encoders=("RobertaModel", "RobertaForMaskedLM"),
    classifiers=("RobertaForSequenceClassification",),
    unused={
        "classifier": (*_BUFFERS, *_both("pooler.dense")),
        "encoder": (
            *_BUFFERS,
            "lm_head.bias",
            *_both("pooler.dense", "lm_head.dense", "lm_head.layer_norm", "lm_head.decoder"),
        ),
    },
    pads_first=True,
)

DISTILBERT: Final = Family(
    name="distilbert",
    prefix="distilbert.",
    embeddings=Embeddings(
        word="embeddings.word_embeddings",
        position="embeddings.position_embeddings",
        types=None,
        norm="embeddings.LayerNorm",
    ),
    layer="transformer.layer.{layer}.",
    block=Block(
        query="attention.q_lin",
        key="attention.k_lin",
        value="attention.v_lin",
        out="attention.out_lin",
        norm_1="sa_layer_norm",
        up="ffn.lin1",
        down="ffn.lin2",
        norm_2="output_layer_norm",
    ),
    classifier=Classifier(dense="pre_classifier", activation="relu", out="classifier"),
    encoders=("DistilBertModel", "DistilBertForMaskedLM"),
    classifiers=("DistilBertForSequenceClassification",),
    unused={
        "classifier": _BUFFERS,
        "encoder": (*_BUFFERS, *_both("vocab_transform", "vocab_layer_norm", "vocab_projector")),
    },
    words=Words(
        hidden="dim",
        n_layers="n_layers",
        n_heads="n_heads",
        intermediate="hidden_dim",
        activation="activation",
        eps=None,
    ),
)

FAMILIES: Final = (BERT, DISTILBERT, ROBERTA)


def family_of(config: Mapping[str, Any]) -> Family:
    """The family of a config.json, once nothing in it is without a private form.

    Raises:
        UnsupportedModel: another model type, or a setting without a private form; all are named.
    """
    model_type = config.get("model_type")
    for family in FAMILIES:
        if family.name == model_type:
            _refuse_settings(config, family)
            return family
    known = ", ".join(family.name for family in FAMILIES)
    raise UnsupportedModel(f"no secret-shared form for model_type {model_type!r}; known: {known}")


def _refuse_settings(config: Mapping[str, Any], family: Family) -> None:
    """Settings that change the function computed, each with the values that load."""
    allowed: dict[str, tuple[Any, ...]] = {
        family.words.activation: ("gelu",),
        "position_embedding_type": ("absolute", None),
        "is_decoder": (False, None),
        "add_cross_attention": (False, None),
        "problem_type": ("single_label_classification", "regression", None),
        "pruned_heads": ({}, None),
        "quantization_config": (None,),
    }
    wrong = [
        f"{name} = {config[name]!r} (must be {good[0]!r})"
        for name, good in allowed.items()
        if name in config and config[name] not in good
    ]
    if wrong:
        raise UnsupportedModel(f"no secret-shared form for {family.name} with " + "; ".join(wrong))


def kind_of(config: Mapping[str, Any], family: Family, names: Iterable[str]) -> Kind:
    """Whether the checkpoint is a classifier or a bare encoder.

    config.json's `architectures` says it; without one, the presence of a classifier does.
    """
    stated = config.get("architectures")
    if stated is None:
        start = family.classifier.out + "."
        return "classifier" if any(name.startswith(start) for name in names) else "encoder"
    if isinstance(stated, list) and len(stated) == 1:
        if stated[0] in family.classifiers:
            return "classifier"
        if stated[0] in family.encoders:
            return "encoder"
    known = ", ".join(family.classifiers + family.encoders)
    raise UnsupportedModel(f"no secret-shared form for architectures {stated!r}; known: {known}")


def census(family: Family, kind: Kind, n_layers: int, stored: Iterable[str]) -> dict[str, str]:
    """For each parameter of the model, by the name without prefix, the name it is stored under.

    Raises:
        UnsupportedModel: parameters without a place in the model; all of them are named.
        CheckpointError: parameters are missing, or stored twice.
    """
    wanted = set(_parameters(family, kind, n_layers))
    found: dict[str, str] = {}
    unknown, twice = [], []
    for name in stored:
        plain = _plain_name(name, family.prefix)
        if plain in wanted:
            twice += [name] if plain in found else []
            found[plain] = name
        elif plain not in family.unused[kind]:
            unknown.append(name)
    if unknown:
        raise UnsupportedModel(
            f"no secret-shared form for these parameters of a {family.name} {kind}: "
            + ", ".join(sorted(unknown))
        )
    missing = sorted(wanted - found.keys())
    if missing:
        raise CheckpointError(f"the checkpoint lacks the parameters {', '.join(missing)}")
    if twice:
        raise CheckpointError(f"stored with and without {family.prefix!r}: {', '.join(twice)}")
    return found


def _plain_name(name: str, prefix: str) -> str:
    """Without the prefix, and in today's words for the parts of a norm."""
    plain = name.removeprefix(prefix)
    for old, new in ((".gamma", ".weight"), (".beta", ".bias")):
        if plain.endswith(old):
            return plain.removesuffix(old) + new
    return plain


def _parameters(family: Family, kind: Kind, n_layers: int) -> Iterable[str]:
    tables = family.embeddings
    for table in (tables.word, tables.position, tables.types):
        if table is not None:
            yield f"{table}.weight"
    yield from _both(tables.norm)
    modules = [getattr(family.block, slot.name) for slot in fields(family.block)]
    for layer in range(n_layers):
        start = family.layer.format(layer=layer)
        yield from _both(*(start + module for module in modules))
    if kind == "classifier":
        yield from _both(family.classifier.dense, family.classifier.out)
