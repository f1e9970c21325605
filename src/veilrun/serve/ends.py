"""Embedding and head on the trusted side: plain ids to rows of the sealed stream, states to scores.

The client kit keeps both tables in the order of cipher ids; they are put into that of plain ids
once, when they are read. Numbers are float32, so two tables of [vocabulary, hidden] cost 8 bytes
an entry of memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from veilrun.checkpoint.tables import read_tables
from veilrun.errors import CheckpointError
from veilrun.serve.kit import IdCodec
from veilrun.wire.middle import Rows

_NAMES: Final = {"embedding.weight", "head.weight"}
_BIAS: Final = "head.bias"


@dataclass(frozen=True, eq=False)
class Ends:
    """embedding, head: [vocabulary, hidden] by plain id. bias: [vocabulary], zeros without one."""

    embedding: Rows
    head: Rows
    bias: Rows

    @property
    def hidden(self) -> int:
        """Entries of a row."""
        return int(self.embedding.shape[1])

    def rows(self, ids: Sequence[int]) -> Rows:
        """[n, hidden]: what the node gets for plain ids."""
        return self.embedding[list(ids)]

    def scores(self, state: Rows) -> Rows:
        """[vocabulary]: the scores of plain ids after a final state [hidden]."""
        result: Rows = self.head @ state + self.bias
        return result

    def __repr__(self) -> str:  # tables are secrets
        return f"Ends(vocab_size={len(self.head)}, hidden={self.hidden})"


def load_ends(path: Path, codec: IdCodec) -> Ends:
    """Read a kit's tables.

    Raises:
        CheckpointError: the file is damaged, or its tables are not those of the kit's model.
    """
    tables = read_tables(path)
    if not _NAMES <= tables.keys() <= _NAMES | {_BIAS}:
        raise CheckpointError(f"{path} holds {', '.join(sorted(tables))}, not the two ends")
    embedding, head = tables["embedding.weight"], tables["head.weight"]
    bias = tables.get(_BIAS, np.zeros(codec.vocab_size, np.float32))
    fits = embedding.ndim == 2 and embedding.shape == head.shape
    if not fits or not len(embedding) == len(bias) == codec.vocab_size:
        raise CheckpointError(
            f"{path}: tables of {embedding.shape} and {head.shape} for {codec.vocab_size} ids"
        )
    order = list(codec.encode(range(codec.vocab_size)))
    return Ends(embedding[order], head[order], bias[order])
