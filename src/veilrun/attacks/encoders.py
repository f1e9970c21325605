"""A BERT encoder's tables as an attacker reads them. There is no head; its units take that part.

BERT's norms are followed by gains that the stream carries on, so only permutations keep such a
model exact. Its tables under other keys are subjects of their own: real geometry, 30,000 words.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from veilrun.attacks.weights import LayerTables, Table, Weights
from veilrun.checkpoint.folder import CONFIG_FILE, SINGLE_FILE, read_json
from veilrun.equivariant.families.table import Shape


def read_bert(folder: Path) -> Weights:
    """Read the encoder in `folder`; the gain before an MLP is folded into it.

    Raises:
        CheckpointError: a damaged configuration. KeyError: not a bare BERT encoder.
    """
    config, tables = read_json(folder / CONFIG_FILE), load_file(folder / SINGLE_FILE)

    def table(name: str) -> Table:
        wide: Table = tables[name].astype(np.float64)
        return wide

    layers = []
    for number in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{number}."
        names = {axis: f"{layer}attention.self.{axis}.weight" for axis in ("query", "key", "value")}
        readers = {axis: table(name) for axis, name in names.items()}
        gain = table(layer + "attention.output.LayerNorm.weight")
        readers["units"] = table(layer + "intermediate.dense.weight") * gain
        writers = {
            "context": table(layer + "attention.output.dense.weight").T,
            "units": table(layer + "output.dense.weight").T,
        }
        layers.append(LayerTables(readers, writers))
    embedding = table("embeddings.word_embeddings.weight")
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    shape = Shape(len(layers), hidden, heads, heads, hidden // heads, 0, len(embedding))
    return Weights(embedding, None, tuple(layers), shape)
