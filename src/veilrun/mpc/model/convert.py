"""From a checkpoint to a folder that can be run on secret shares, and how good it is.

The texts decide the windows of every value (`calibration`), so they should be like those that
will come, and as long. A sample of them then goes through the plaintext twin, which has the
protocol's tables and rounding to the bit, beside the float model: what differs here will differ
in the protocol.

Invariants. Nothing is written before the twin has run. The tokenizer that is stored gives the
ids that transformers gives for these texts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np

from veilrun.checkpoint.folder import tokenizer_files
from veilrun.errors import CheckpointError, UnsupportedModel, UsageError
from veilrun.mpc import cost, inference
from veilrun.mpc.cost import Prediction
from veilrun.mpc.inference import TwinModel
from veilrun.mpc.machines.twin import uniform_low_bits
from veilrun.mpc.model import files, reference
from veilrun.mpc.model.architecture import Architecture, FloatModel, load
from veilrun.mpc.model.calibration import calibrate
from veilrun.mpc.model.entry import MISSING_EXTRA, Tokenizer, check_ids, entry_of
from veilrun.mpc.model.quantise import quantise
from veilrun.mpc.model.quantised import SECRET_EMBEDDING, QuantisedModel
from veilrun.mpc.profile import W1A4, W16A8, Profile

T = TypeVar("T")

SAMPLE: Final = 64
"""Texts that the twin runs, at most."""

LENGTHS: Final = (8, 32, 128)
"""Numbers of tokens that costs are told for, where calibration saw longer texts."""

_VOCABULARIES: Final = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")

Progress = Callable[[str, int, int], None]
"""Told the phase, "calibrating" or "checking", how much of it is done, and of how much."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """The twin beside the float model, on n_texts texts.

    same_label: the share of texts with the same largest logit; None for a bare encoder.
    largest_difference: of a logit, or of an entry of the mean hidden state.
    cosine_median, cosine_worst: between the two outputs.
    overflows: place -> values that left their range. Any is a wrong answer waiting to happen.
    flagged: table -> values that came near the end of its window.
    """

    n_texts: int
    same_label: float | None
    largest_difference: float
    cosine_median: float
    cosine_worst: float
    overflows: dict[str, int]
    flagged: dict[str, int]


@dataclass(frozen=True, slots=True)
class Report:
    """What was made. digest: of the model, hex. n_tokens: of all texts. costs: by length, up to
    max_tokens, that of the longest text; longer ones were not calibrated.
    """

    folder: Path
    digest: str
    architecture: Architecture
    profile: str
    embedding: str
    n_texts: int
    n_tokens: int
    max_tokens: int
    agreement: Agreement
    costs: tuple[Prediction, ...]


def convert(
    checkpoint: Path,
    out: Path,
    *,
    texts: Sequence[str],
    profile: Profile = W16A8,
    embedding: str = SECRET_EMBEDDING,
    progress: Progress = lambda phase, done, total: None,
) -> Report:
    """Quantise the model in `checkpoint` into the new folder `out`.

    texts: to calibrate with. embedding: "secret", or "client" where the table is public.

    Raises:
        UsageError: no texts, one that is too long, or `out` exists.
        UnsupportedModel: the model, or its tokenizer, has no form that we can run, or not in
            this profile.
        CheckpointError: the checkpoint is damaged.
        StorageError: the disk is full.
    """
    if out.exists():
        raise UsageError(f"{out} exists already; choose another name or remove it first")
    if profile.name == W1A4.name:
        raise UnsupportedModel(
            f"{W1A4.name} needs a model trained for it, with one-bit weights: "
            f"training/distil_w1a4.py makes one of a float classifier, quantised already; other "
            f"models go with {W16A8.name}"
        )
    model = load(checkpoint)
    tokenizer_json = tokenizer_of(checkpoint, texts)
    sentences = _sentences(model, Tokenizer(tokenizer_json), texts)
    ranges = calibrate(model, sentences, lambda done, total: progress("calibrating", done, total))
    quantised = quantise(model, ranges, profile, embedding=embedding)
    agreement = compare(
        model,
        quantised,
        _sample(sentences),
        lambda done, total: progress("checking", done, total),
    )
    files.save(quantised, tokenizer_json, out)
    shape = model.architecture
    longest = quantised.public.max_tokens
    lengths = [*(length for length in LENGTHS if length < longest), longest]
    return Report(
        folder=out,
        digest=files.digest(out).hex(),
        architecture=shape,
        profile=profile.name,
        embedding=embedding,
        n_texts=len(sentences),
        n_tokens=sum(map(len, sentences)),
        max_tokens=quantised.public.max_tokens,
        agreement=agreement,
        costs=tuple(cost.predict(quantised.public, length) for length in lengths),
    )


def compare(
    model: FloatModel,
    quantised: QuantisedModel,
    sentences: Sequence[Sequence[int]],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Agreement:
    """The twin beside the float model on some sentences (token ids)."""
    twin = TwinModel(quantised)
    low_bits = uniform_low_bits(0)
    pairs: list[tuple[Any, Any]] = []
    overflows: Counter[str] = Counter()
    flagged: Counter[str] = Counter()
    for number, ids in enumerate(sentences):
        tokens = check_ids(quantised.public, ids)
        ours, outside = inference.predict(twin, entry_of(quantised, tokens), low_bits)
        theirs = reference.forward(model, ids)
        expected = theirs.hidden.mean(0) if theirs.logits is None else theirs.logits
        pairs.append((ours.output, expected.astype(np.float64)))
        flagged.update(ours.flagged)
        for one in outside:
            overflows[one.where] += one.n_values
        progress(number + 1, len(sentences))
    cosines = [_cosine(*pair) for pair in pairs]
    same = [int(np.argmax(ours) == np.argmax(theirs)) for ours, theirs in pairs]
    return Agreement(
        n_texts=len(pairs),
        same_label=None if model.head is None else float(np.mean(same)),
        largest_difference=max(float(np.abs(ours - theirs).max()) for ours, theirs in pairs),
        cosine_median=float(np.median(cosines)),
        cosine_worst=min(cosines),
        overflows=dict(sorted(overflows.items())),
        flagged=dict(sorted(flagged.items())),
    )


def tokenizer_of(checkpoint: Path, texts: Sequence[str]) -> bytes:
    """The checkpoint's tokenizer as one tokenizer.json, without truncation or padding.

    texts: on some of them its ids are compared with those of transformers.

    Raises:
        UnsupportedModel: it has no fast form, or that gives other ids.
        CheckpointError: there is none, or it does not parse.
        UsageError: the packages that read it are missing.
    """
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise UsageError(MISSING_EXTRA) from None
    if not set(tokenizer_files(checkpoint)) & set(_VOCABULARIES):  # without one, an empty tokenizer
        raise CheckpointError(f"{checkpoint} has none of {', '.join(_VOCABULARIES)}")
    try:
        theirs = AutoTokenizer.from_pretrained(checkpoint, local_files_only=True)
    except Exception as error:  # of three packages, in no common class
        raise CheckpointError(f"{checkpoint} has no tokenizer that can be read: {error}") from error
    if not theirs.is_fast:
        raise UnsupportedModel(f"{checkpoint}: its tokenizer has no tokenizer.json")
    fast = theirs.backend_tokenizer
    fast.no_truncation()
    fast.no_padding()
    tokenizer_json: bytes = fast.to_str().encode()
    ours = Tokenizer(tokenizer_json)
    for text in _sample(texts):
        if ours.ids(text) != list(theirs(text, truncation=False)["input_ids"]):
            raise UnsupportedModel(
                f"{checkpoint}: its tokenizer adds something that tokenizer.json does not hold"
            )
    return tokenizer_json


def _sentences(model: FloatModel, tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    if not texts:
        raise UsageError("calibration needs texts, the more the better; none were given")
    shape = model.architecture
    sentences = [tokenizer.ids(text) for text in texts]
    for number, ids in enumerate(sentences, start=1):
        if not 1 <= len(ids) <= shape.max_tokens:
            raise UsageError(
                f"text {number} has {len(ids)} tokens; this model takes 1 to {shape.max_tokens}"
            )
        if max(ids) >= shape.n_vocab:
            raise CheckpointError(
                f"text {number}: the tokenizer gives id {max(ids)}, and the model has "
                f"{shape.n_vocab}: they do not belong together"
            )
    return sentences


def _sample(items: Sequence[T]) -> list[T]:
    """At most SAMPLE of them, from everywhere."""
    step = -(-len(items) // SAMPLE)
    return list(items[:: max(step, 1)])


def _cosine(one: Any, other: Any) -> float:
    lengths = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(one @ other) / lengths if lengths else 0.0
