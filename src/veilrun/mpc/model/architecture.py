"""A BERT, DistilBERT or RoBERTa checkpoint as one canonical float32 model.

The model, for token ids t_0..t_{L-1} (`@` on rows; LN subtracts the mean, divides by the root
of variance + eps, then takes gain and bias):

    x = LN(word[t_i] + position[i + position_offset])
    per layer:  q, k, v = split(x @ qkv);  c = softmax(q k^T / sqrt(head_dim)) v, head by head
                x = LN(x + c @ out);       x = LN(x + gelu(x @ up) @ down)
    head:       logits = activation(x[0] @ dense) @ out

Invariants: every weight is finite, contiguous float32 in the orientation `x @ weight`; loading
either accounts for every parameter of the checkpoint (`families`) or raises.
`Architecture` is what all parties may know. Everything else here is the model owner's secret,
so nothing else has a repr that shows a value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from veilrun.checkpoint.folder import CONFIG_FILE, Checkpoint
from veilrun.errors import CheckpointError, DecodeError, UsageError
from veilrun.mpc.model import tensors
from veilrun.mpc.model.families import FAMILIES, Family, Kind, census, family_of, kind_of
from veilrun.mpc.model.tensors import Float32
from veilrun.wire import fields
from veilrun.wire.fields import Fields

ACTIVATIONS: Final = ("tanh", "relu")
_MAX: Final = {
    "n_layers": 1 << 10,
    "n_heads": 1 << 10,
    "hidden": 1 << 16,
    "intermediate": 1 << 20,
    "n_vocab": 1 << 24,
    "n_positions": 1 << 20,
}
"""Sizes beyond any encoder in use, so that no message makes a party allocate without bound."""
_MAX_LABELS: Final = 1 << 16
_DEFAULT_EPS: Final = 1e-12  # of all three families, in transformers
_RANDOM_STD: Final = 0.02  # how BERT is initialised


@dataclass(frozen=True, slots=True)
class Architecture:
    """The public shape of a model.

    family: "bert", "distilbert" or "roberta".
    n_positions: rows of the position table; see `max_tokens` for how many a sentence may use.
    position_offset: token i of a sentence uses row i + position_offset.
    head_activation: "tanh" or "relu" between the two linear maps of the classifier; None for a
        bare encoder.
    labels: one name for each of the n_labels logits.

    Raises UsageError when the parts contradict each other.
    """

    family: str
    n_layers: int
    n_heads: int
    hidden: int
    intermediate: int
    n_vocab: int
    n_positions: int
    position_offset: int
    head_activation: str | None
    n_labels: int
    labels: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.hidden % self.n_heads:
            raise UsageError(f"{self.n_heads} heads do not divide a width of {self.hidden}")
        if self.position_offset >= self.n_positions:
            raise UsageError(f"position_offset {self.position_offset} leaves no positions")
        if len(self.labels) != self.n_labels:
            raise UsageError(f"{len(self.labels)} labels for {self.n_labels} logits")
        if (self.head_activation is None) != (self.n_labels == 0):
            raise UsageError("a model has labels exactly when its head has an activation")

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden // self.n_heads

    @property
    def max_tokens(self) -> int:
        """The longest sentence, special tokens included."""
        return self.n_positions - self.position_offset

    def to_json(self) -> dict[str, Any]:
        """The fields by name."""
        return {**asdict(self), "labels": list(self.labels)}

    @staticmethod
    def from_json(value: Any, name: str = "architecture") -> Architecture:
        """A reader for `wire.fields`: the checked value or DecodeError."""
        body = Fields(fields.mapping(value, name), name)
        labels = fields.at_most(_MAX_LABELS, fields.list_of(fields.short_text))
        activation = fields.optional(fields.one_of(*ACTIVATIONS))
        sizes: dict[str, Any] = {
            size: body.take(size, fields.within(1, limit)) for size, limit in _MAX.items()
        }
        others: dict[str, Any] = {
            "family": body.take("family", fields.one_of(*(one.name for one in FAMILIES))),
            "position_offset": body.take("position_offset", fields.within(0, _MAX["n_positions"])),
            "head_activation": body.take("head_activation", activation),
            "n_labels": body.take("n_labels", fields.within(0, _MAX_LABELS)),
            "labels": tuple(body.take("labels", labels)),
        }
        body.finish()
        try:
            return Architecture(**sizes, **others)
        except UsageError as error:
            raise DecodeError(f"{name}: {error}", field=name) from error


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Linear:
    """`x @ weight + bias`. weight: [n_in, n_out]. bias: [n_out]."""

    weight: Float32
    bias: Float32


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Norm:
    """LayerNorm. gain, bias: [d]. eps: added to the variance under the root."""

    gain: Float32
    bias: Float32
    eps: float


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Layer:
    """One layer. qkv: d -> 3 d, query then key then value, heads side by side in each."""

    qkv: Linear
    out: Linear
    norm_1: Norm
    up: Linear
    down: Linear
    norm_2: Norm


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Head:
    """The classifier. dense: d -> d. activation: "tanh" or "relu". out: d -> n_labels."""

    dense: Linear
    activation: str
    out: Linear


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class FloatModel:
    """The whole model in the clear.

    word: [n_vocab, d]. position: [n_positions, d], row 0 of the token types added to each.
    norm: of the embeddings. head: None for a bare encoder.
    """

    architecture: Architecture
    word: Float32
    position: Float32
    norm: Norm
    layers: tuple[Layer, ...]
    head: Head | None

    def __repr__(self) -> str:
        return f"FloatModel({self.architecture!r})"


def load(folder: Path) -> FloatModel:
    """The model in a Hugging Face checkpoint folder.

    Raises:
        UnsupportedModel: a model type, setting or parameter without a secret-shared form.
        CheckpointError: files are missing or damaged, or contradict config.json.
        RefusedError: the weights are pickles.
    """
    with Checkpoint(folder) as checkpoint:
        try:
            return _load(checkpoint)
        except DecodeError as error:
            raise CheckpointError(f"{folder / CONFIG_FILE}: {error}") from error


def random_model(architecture: Architecture, seed: int) -> FloatModel:
    """Weights as BERT is initialised, N(0, 0.02^2), gains 1: for benchmarks, secret to nobody."""
    random = np.random.default_rng(seed)
    hidden, wide = architecture.hidden, architecture.intermediate

    def normal(*shape: int) -> Float32:
        return random.standard_normal(shape, np.float32) * np.float32(_RANDOM_STD)

    def linear(n_in: int, n_out: int) -> Linear:
        return Linear(normal(n_in, n_out), normal(n_out))

    def norm() -> Norm:
        return Norm(np.ones(hidden, np.float32), np.zeros(hidden, np.float32), _DEFAULT_EPS)

    def layer() -> Layer:
        return Layer(
            qkv=linear(hidden, 3 * hidden),
            out=linear(hidden, hidden),
            norm_1=norm(),
            up=linear(hidden, wide),
            down=linear(wide, hidden),
            norm_2=norm(),
        )

    activation = architecture.head_activation
    return FloatModel(
        architecture=architecture,
        word=normal(architecture.n_vocab, hidden),
        position=normal(architecture.n_positions, hidden),
        norm=norm(),
        layers=tuple(layer() for _ in range(architecture.n_layers)),
        head=None
        if activation is None
        else Head(linear(hidden, hidden), activation, linear(hidden, architecture.n_labels)),
    )


def _load(checkpoint: Checkpoint) -> FloatModel:
    """Plan first (settings, names, shapes, dtypes), then read."""
    config = checkpoint.config
    family = family_of(config)
    kind = kind_of(config, family, checkpoint)
    words, settings = family.words, Fields(config, "")
    n_layers = settings.take(words.n_layers, fields.within(1, _MAX["n_layers"]))
    stored = census(family, kind, n_layers, checkpoint)
    architecture = _architecture(family, kind, n_layers, settings, checkpoint, stored)
    reader = _Reader(checkpoint, stored, _eps(family, settings))
    tables, classifier = family.embeddings, family.classifier
    n_types = (
        0 if tables.types is None else tensors.n_rows(checkpoint, stored[f"{tables.types}.weight"])
    )
    tensors.check(checkpoint, stored, _shapes(family, kind, architecture, n_types))
    position = reader.tensor(f"{tables.position}.weight")
    if tables.types is not None:
        position += reader.tensor(f"{tables.types}.weight")[0]
    return FloatModel(
        architecture=architecture,
        word=reader.tensor(f"{tables.word}.weight"),
        position=position,
        norm=reader.norm(tables.norm),
        layers=tuple(reader.layer(family, index) for index in range(n_layers)),
        head=None
        if kind == "encoder"
        else Head(
            dense=reader.linear(classifier.dense),
            activation=classifier.activation,
            out=reader.linear(classifier.out),
        ),
    )


def _architecture(
    family: Family,
    kind: Kind,
    n_layers: int,
    settings: Fields,
    checkpoint: Checkpoint,
    stored: Mapping[str, str],
) -> Architecture:
    def size(word: str, field: str) -> int:
        return settings.take(word, fields.within(1, _MAX[field]))

    pad = settings.take("pad_token_id", fields.within(0, _MAX["n_vocab"]), 1)
    labels: tuple[str, ...] = ()
    if kind == "classifier":
        n_labels = tensors.n_rows(checkpoint, stored[f"{family.classifier.out}.weight"])
        labels = _labels(checkpoint.config.get("id2label"), n_labels)
    words = family.words
    try:
        return Architecture(
            family=family.name,
            n_layers=n_layers,
            n_heads=size(words.n_heads, "n_heads"),
            hidden=size(words.hidden, "hidden"),
            intermediate=size(words.intermediate, "intermediate"),
            n_vocab=size("vocab_size", "n_vocab"),
            n_positions=size("max_position_embeddings", "n_positions"),
            position_offset=pad + 1 if family.pads_first else 0,
            head_activation=family.classifier.activation if kind == "classifier" else None,
            n_labels=len(labels),
            labels=labels,
        )
    except UsageError as error:
        raise CheckpointError(f"{checkpoint.folder / CONFIG_FILE}: {error}") from error


def _labels(id2label: Any, n_labels: int) -> tuple[str, ...]:
    """config.json's names, in order; without any, the names transformers gives."""
    if id2label is None:
        return tuple(f"LABEL_{index}" for index in range(n_labels))
    names = fields.mapping(id2label, "id2label")
    if set(names) != {str(index) for index in range(n_labels)}:
        raise DecodeError(f"id2label names {len(names)} labels, the classifier has {n_labels}")
    return tuple(
        fields.short_text(names[str(index)], f"id2label.{index}") for index in range(n_labels)
    )


def _eps(family: Family, settings: Fields) -> float:
    if family.words.eps is None:
        return _DEFAULT_EPS
    return settings.take(family.words.eps, fields.between(0.0, 1.0), _DEFAULT_EPS)


def _shapes(
    family: Family, kind: Kind, shape: Architecture, n_types: int
) -> dict[str, tuple[int, ...]]:
    """What the weight of each module must measure, as stored; each bias measures its rows."""
    hidden, wide = shape.hidden, shape.intermediate
    tables, block = family.embeddings, family.block
    shapes: dict[str, tuple[int, ...]] = {
        tables.word: (shape.n_vocab, hidden),
        tables.position: (shape.n_positions, hidden),
        tables.norm: (hidden,),
    }
    if tables.types is not None:
        shapes[tables.types] = (n_types, hidden)
    for layer in range(shape.n_layers):
        start = family.layer.format(layer=layer)
        for module in (block.query, block.key, block.value, block.out):
            shapes[start + module] = (hidden, hidden)
        shapes[start + block.up] = (wide, hidden)
        shapes[start + block.down] = (hidden, wide)
        for module in (block.norm_1, block.norm_2):
            shapes[start + module] = (hidden,)
    if kind == "classifier":
        shapes[family.classifier.dense] = (hidden, hidden)
        shapes[family.classifier.out] = (shape.n_labels, hidden)
    return shapes


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads modules by their plain names. Only after `tensors.check`.

    stored: plain parameter name -> the name in the checkpoint.
    """

    checkpoint: Checkpoint
    stored: Mapping[str, str]
    eps: float

    def tensor(self, name: str) -> Float32:
        """The tensor as stored."""
        return tensors.read(self.checkpoint, self.stored[name])

    def linear(self, *modules: str) -> Linear:
        """Modules with a common input as one."""
        weights = [self.tensor(f"{module}.weight").T for module in modules]
        biases = [self.tensor(f"{module}.bias") for module in modules]
        return Linear(np.ascontiguousarray(np.concatenate(weights, 1)), np.concatenate(biases))

    def norm(self, module: str) -> Norm:
        """A norm's gain and bias."""
        return Norm(self.tensor(f"{module}.weight"), self.tensor(f"{module}.bias"), self.eps)

    def layer(self, family: Family, index: int) -> Layer:
        """Layer number `index`."""
        start, block = family.layer.format(layer=index), family.block
        return Layer(
            qkv=self.linear(start + block.query, start + block.key, start + block.value),
            out=self.linear(start + block.out),
            norm_1=self.norm(start + block.norm_1),
            up=self.linear(start + block.up),
            down=self.linear(start + block.down),
            norm_2=self.norm(start + block.norm_2),
        )
