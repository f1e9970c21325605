"""What the client is told: the output in its units, and the counts of the guards by table."""

from __future__ import annotations

from dataclasses import replace

import mpc_model_rig as rig
import numpy as np
import pytest

from veilrun.mpc import inference
from veilrun.mpc.shares import signed
from veilrun.mpc.tables import LinearTable

IDS = [7, 3, 9, 1, 12]


def counted(name: str, n: int, bits: int) -> tuple[tuple[str, int], np.ndarray]:
    """A flag, and its count as a party of that ring reveals it."""
    return (name, bits), signed(np.asarray(n, np.uint64), bits)


@pytest.mark.parametrize("bits", [16, 32])
def test_counts_of_one_table_add_up_and_have_no_sign(bits: int) -> None:
    public = rig.quantised(rig.float_model(rig.architecture())).public
    flags = [
        counted("reciprocal", 3, bits),
        counted("layer_0.gelu_0", 2**bits - 1, bits),
        counted("reciprocal", 2 ** (bits - 1), bits),
        counted("norm", 0, bits),
    ]
    revealed = (np.array([[1, 2, 3]]), *(count for _, count in flags))
    found = inference.answer(public, revealed, [flag for flag, _ in flags], 4)
    assert found is not None
    assert found.flagged == {
        "reciprocal": 2 ** (bits - 1) + 3,
        "layer_0.gelu_0": 2**bits - 1,
    }
    assert found.integers.tolist() == [1, 2, 3]


def test_every_row_sum_of_every_layer_is_counted() -> None:
    shape = rig.architecture()
    model = rig.quantised(rig.float_model(shape))
    table = model.public.tables["reciprocal"]
    assert isinstance(table, LinearTable) and table.guard is not None
    all_of_it = replace(table, guard=np.ones_like(table.guard))
    tables = {**model.public.tables, "reciprocal": all_of_it}
    ran = rig.run(replace(model, public=replace(model.public, tables=tables)), IDS)
    n_row_sums = shape.n_layers * shape.n_heads * len(IDS)
    assert ran.answer.flagged["reciprocal"] == n_row_sums
    assert ran.answer.flagged == ran.twin.flagged
