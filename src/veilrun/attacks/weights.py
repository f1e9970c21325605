"""A model as an attacker reads it: tables whose last axis is the hidden one, gains folded in.

Nothing here needs a key: an encrypted checkpoint is an ordinary one, and is read the same way.

Invariant: two checkpoints of one architecture that compute the same function under a residual
key A have embeddings related by `x A` and readers by `x A^-T`, each row moved by some
permutation; norm gains are folded into readers, so they differ by nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from veilrun.checkpoint.folder import Checkpoint
from veilrun.equivariant.census import Census, take_census
from veilrun.equivariant.families import family_of
from veilrun.equivariant.families.table import AxisName, Family, Linear, Norm, PerHead, Shape
from veilrun.equivariant.tensors import read_matrix, read_vector

Table = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class LayerTables:
    """One layer. readers: `query`, `key`, `value`, `units`, `products`: [n, hidden], what reads
    the stream. writers: `context` (attention) and `products` (MLP): [n, hidden], what writes it.
    Rows of all experts stand one after the other.
    """

    readers: Mapping[str, Table]
    writers: Mapping[str, Table]


@dataclass(frozen=True, eq=False)
class Weights:
    """embedding: [vocabulary, hidden]. head: [vocabulary, hidden], the last norm's gain folded
    in; None for an encoder. shape: sizes; hidden is that of the tables.
    """

    embedding: Table
    head: Table | None
    layers: tuple[LayerTables, ...]
    shape: Shape

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding."""
        return len(self.embedding)

    @property
    def hidden(self) -> int:
        """Columns of every table."""
        return int(self.embedding.shape[1])


def read_weights(folder: Path) -> Weights:
    """Read the checkpoint in `folder`, plain or encrypted.

    Raises:
        UnsupportedModel: an architecture or a tensor that no family's table has.
        CheckpointError: damaged files.
    """
    from transformers import AutoConfig

    with Checkpoint(folder) as checkpoint:
        family = family_of(checkpoint.config.get("model_type"))
        config: Any = AutoConfig.from_pretrained(folder, local_files_only=True)
        shape = family.shape(config)
        tied = bool(getattr(config, "tie_word_embeddings", False))
        return _Reader(
            checkpoint, family, shape, take_census(checkpoint, family, shape, tied=tied)
        ).weights()


@dataclass(frozen=True, eq=False)
class _Reader:
    checkpoint: Checkpoint
    family: Family
    shape: Shape
    census: Census

    def weights(self) -> Weights:
        modules = self.census.modules
        embedding = self._matrix(modules[self.family.embedding]["weight"])
        head_name = modules.get(self.family.head, {}).get("weight")
        head = embedding if head_name is None else self._matrix(head_name)
        gain = self._gain(self.census.head, None)
        return Weights(
            embedding=embedding,
            head=head if gain is None else head * gain,
            layers=tuple(self._layer(number) for number in range(self.shape.n_layers)),
            shape=self.shape,
        )

    def _layer(self, layer: int) -> LayerTables:
        readers: dict[str, list[Table]] = {}
        writers: dict[str, list[Table]] = {}
        for name, found in self.census.found.items():
            row = found.row
            if found.layer != layer or found.part != "weight" or not isinstance(row, Linear):
                continue
            matrix = self._matrix(name)
            matrix = matrix.T if row.transposed else matrix
            if row.into == "residual":
                gain = self._gain(row, layer)
                for axis, rows in self._split(row, matrix if gain is None else matrix * gain):
                    readers.setdefault(axis, []).append(rows)
            elif row.out == "residual" and isinstance(row.into, str):
                writers.setdefault(row.into, []).append(matrix.T)
        return LayerTables(
            {axis: np.concatenate(parts) for axis, parts in readers.items()},
            {axis: np.concatenate(parts) for axis, parts in writers.items()},
        )

    def _split(self, row: Linear, matrix: Table) -> list[tuple[AxisName, Table]]:
        """A fused projection's parts."""
        if isinstance(row.out, str):
            return [(row.out, matrix)]
        if isinstance(row.out, PerHead):
            axes, hidden = row.out.axes, matrix.shape[1]
            heads = matrix.reshape(self.shape.n_heads, len(axes), -1, hidden)
            return [(axis, heads[:, at].reshape(-1, hidden)) for at, axis in enumerate(axes)]
        sizes = {
            "query": self.shape.n_heads * self.shape.head_dim,
            "key": self.shape.n_kv_heads * self.shape.head_dim,
            "value": self.shape.n_kv_heads * self.shape.head_dim,
        }
        share = len(matrix) // len(row.out)
        ends = np.cumsum([sizes.get(axis, share) for axis in row.out])
        return list(zip(row.out, np.split(matrix, ends[:-1]), strict=True))

    def _gain(self, row: Linear, layer: int | None) -> Table | None:
        norm = self.census.norm_before(row, layer)
        if norm is None:
            return None
        name = self.census.modules[norm]["weight"]
        kind = self.census.found[name].row
        offset = 1.0 if isinstance(kind, Norm) and kind.kind == "rms+1" else 0.0
        gain: Table = read_vector(self.checkpoint, name).numpy() + offset
        return gain

    def _matrix(self, name: str) -> Table:
        matrix: Table = read_matrix(self.checkpoint, name).double().numpy()
        return matrix
