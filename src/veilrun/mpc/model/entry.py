"""From a text to what the network starts from: ids, then one row of integers per token.

    text   tokenizer.json makes it ids, with the special tokens of the model
    ids    checked here, once, by whoever holds them: the client, or the twin
    entry  secret embedding: rows of the private table; the network adds the positions.
           public embedding: word and position added and normalised, in steps of
           2^-x_fraction. Gain and bias of that norm are in the private matrices.

Invariant: an entry is int64 [n_tokens, hidden]; a party reduces it to the linear ring.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, final

import numpy as np

from veilrun.errors import CheckpointError, UsageError
from veilrun.mpc.model.quantised import (
    ClientEmbedding,
    Integers,
    PublicModel,
    QuantisedModel,
)
from veilrun.mpc.model.reference import normalise

MISSING_EXTRA: Final = "reading text needs the tokenizers package: pip install 'veilrun[mpc]'"


@final
class Tokenizer:
    """Texts to ids, special tokens included; never truncated or padded.

    tokenizer_json: the content of a quantised model's tokenizer.json.

    Raises:
        CheckpointError: it is no tokenizer.
        UsageError: the tokenizers package is missing.
    """

    def __init__(self, tokenizer_json: bytes) -> None:
        try:
            import tokenizers
        except ImportError:
            raise UsageError(MISSING_EXTRA) from None
        try:
            self._tokenizer = tokenizers.Tokenizer.from_buffer(tokenizer_json)
        except Exception as error:  # the package raises nothing finer
            raise CheckpointError(f"tokenizer.json does not parse: {error}") from error

    def ids(self, text: str) -> list[int]:
        """The ids of a text."""
        return list(self._tokenizer.encode(text).ids)


def check_ids(public: PublicModel, ids: Sequence[int], *, allow_longer: bool = False) -> Integers:
    """The ids of one text, checked.

    allow_longer: than the texts that the model was calibrated with.

    Raises:
        UsageError: no ids, too many, or some that the model does not know.
    """
    a = public.architecture
    tokens = np.asarray(ids)
    if tokens.ndim != 1 or not 1 <= len(tokens) <= a.max_tokens:
        raise UsageError(
            f"a text has 1 to {a.max_tokens} tokens, special ones included, not {tokens.size}"
        )
    if tokens.dtype.kind not in "iu" or tokens.min() < 0 or tokens.max() >= a.n_vocab:
        raise UsageError(f"token ids are whole numbers from 0 to {a.n_vocab - 1}")
    if len(tokens) > public.max_tokens and not allow_longer:
        raise UsageError(
            f"a text of {len(tokens)} tokens, and the longest that this model was calibrated with "
            f"has {public.max_tokens}: its values may overflow; quantise it again with longer texts"
        )
    checked: Integers = tokens.astype(np.int64)
    return checked


def client_entry(
    public: PublicModel, client: ClientEmbedding, ids: Sequence[int] | Integers
) -> Integers:
    """The entry where the embedding is public; ids from `check_ids`."""
    first = public.architecture.position_offset
    rows = client.word[np.asarray(ids)].astype(np.float64)
    rows += client.position[first : first + len(ids)]
    steps = np.rint(normalise(rows, client.eps) * 2.0**public.profile.x_fraction)
    entry: Integers = steps.astype(np.int64)
    return entry


def entry_of(model: QuantisedModel, ids: Sequence[int] | Integers) -> Integers:
    """The entry for whoever has the whole model: the twin; ids from `check_ids`."""
    if model.client is not None:
        return client_entry(model.public, model.client, ids)
    if model.private.word is None:
        raise UsageError("a model with neither a secret nor a public embedding")
    entry: Integers = model.private.word[np.asarray(ids)].astype(np.int64)
    return entry
