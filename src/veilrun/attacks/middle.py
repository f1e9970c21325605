"""A model whose ends stay with the client, as its node has it.

The node holds the layers, and sees the rows that come in and the states that go out. Equal tokens
are equal rows, so rows are as good as ids: traffic counts as ids here. A row that was seen is a
row of the sealed embedding; those of other tokens, and the head, the node never has.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file

from veilrun.attacks.holdings import Model, Runs
from veilrun.attacks.runs import Engine
from veilrun.attacks.weights import Ids, Weights, read_weights
from veilrun.checkpoint.folder import CONFIG_FILE, SINGLE_FILE, encode_json, read_json
from veilrun.checkpoint.tables import read_tables
from veilrun.equivariant.families.table import Family


def whole_model(out: Path, ends: Path, family: Family) -> Model:
    """The middle in `out` and the kit's `ends` as one model: what an audit knows, and nobody else.

    Raises:
        CheckpointError: damaged files.
    """
    tables = {name: torch.from_numpy(one) for name, one in read_tables(ends).items()}
    with tempfile.TemporaryDirectory(prefix="veilrun-audit-") as scratch:
        whole = Path(scratch)
        _join(out, tables, family, whole)
        return Model(read_weights(whole), Engine(whole))


def node_view(whole: Model, traffic: Sequence[Ids]) -> Model:
    """What the node has after `traffic` (cipher ids)."""
    return Model(
        _seen(whole.weights, traffic), None if whole.runs is None else Recorded(whole.runs)
    )


@dataclass(frozen=True, eq=False)
class Recorded:
    """States of a running middle. It gives no logits: the head is with the client."""

    engine: Runs

    def logits(self, ids: Sequence[Ids]) -> list[npt.NDArray[np.float32]]:
        """Raises LookupError: a node without a head has none."""
        raise LookupError("the node has no head")

    def states(self, ids: Sequence[Ids], depth: int) -> list[npt.NDArray[np.float32]]:
        """As `Runs.states`."""
        return self.engine.states(ids, depth)

    def next_states(self, prefix: Ids, candidates: Ids, depth: int) -> npt.NDArray[np.float32]:
        """Raises LookupError: a node has no rows of tokens that it has not seen."""
        raise LookupError("the node has no rows to try")


def _join(out: Path, tables: dict[str, torch.Tensor], family: Family, whole: Path) -> None:
    """A whole checkpoint of the middle and the client's tables."""
    tensors: dict[str, torch.Tensor] = {}
    for shard in sorted(out.glob("*.safetensors")):
        tensors |= load_file(shard)
    dtype = next(iter(tensors.values())).dtype
    tensors[f"{family.embedding}.weight"] = tables["embedding.weight"].to(dtype)
    tensors[f"{family.head}.weight"] = tables["head.weight"].to(dtype)
    save_file(tensors, whole / SINGLE_FILE, metadata={"format": "pt"})
    config = read_json(out / CONFIG_FILE)
    config |= {"vocab_size": len(tables["head.weight"]), "tie_word_embeddings": False}
    (whole / CONFIG_FILE).write_bytes(encode_json(config))


def _seen(weights: Weights, traffic: Sequence[Ids]) -> Weights:
    """Tables with the rows of `traffic` alone."""
    embedding = np.zeros_like(weights.embedding)
    if traffic:
        rows = np.unique(np.concatenate(list(traffic)))
        embedding[rows] = weights.embedding[rows]
    return replace(weights, embedding=embedding, head=None)
