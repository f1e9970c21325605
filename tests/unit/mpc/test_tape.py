"""Tapes: views as numpy has them, memory that nothing shares, and what a peer may send.

That a tape does what the parties do is held by the rigs: every gate's test and every model's.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mpc_rig
import numpy as np
import pytest

import veilrun.mpc
from veilrun.errors import DecodeError
from veilrun.mpc import native
from veilrun.mpc.machines.party import Party
from veilrun.mpc.material import halves
from veilrun.mpc.operations import FIRST, NO_ANCHOR, PREVIOUS, Operations
from veilrun.mpc.plan import packed_bytes
from veilrun.mpc.prg import Stream
from veilrun.mpc.shares import Shared, wrap
from veilrun.mpc.tables import LinearTable, StepTable
from veilrun.mpc.tape.cells import Cells, Memory, even_runs
from veilrun.mpc.tape.recorder import Recorder
from veilrun.mpc.tape.steps import Op
from veilrun.mpc.tape.tape import Loaded
from veilrun.transport.rounds import Protocol

needs_kernel = pytest.mark.skipif(
    native.KERNEL is None or not native.KERNEL.has_aes, reason="no native kernel with AES here"
)


def cells_of(array: np.ndarray) -> tuple[Cells, Callable[[Cells], np.ndarray]]:
    """Cells whose memory holds the array, and how to read a view of them."""
    memory = array.tobytes()

    def read(view: Cells) -> np.ndarray:
        out = np.empty(view.shape, array.dtype)
        for place in np.ndindex(*view.shape):
            at = view.start + sum(i * step for i, step in zip(place, view.strides, strict=True))
            out[place] = np.frombuffer(memory, array.dtype, 1, at)[0]
        return out

    def copied(view: Cells) -> Cells:
        raise AssertionError("a copy where a view will do")

    return Cells.new(Memory().room(array.nbytes), array.shape, array.itemsize, copied), read


VIEWS: list[Callable[[Any], Any]] = [
    lambda a: a,
    lambda a: a[1],
    lambda a: a[:, 1:3],
    lambda a: a[1:, :, 2:5],
    lambda a: a[:1],
    lambda a: a.transpose(1, 0, 2),
    lambda a: a.transpose(0, 2, 1)[:, 1:2],
    lambda a: a.reshape(-1, 5),
    lambda a: a.reshape((3, -1)),
    lambda a: a.reshape(len(a), 2, -1).transpose(1, 0, 2),
]


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint64])
def test_views_of_cells_are_those_of_numpy(view: Callable[[Any], Any], dtype: type) -> None:
    array = np.arange(3 * 4 * 5).astype(dtype).reshape(3, 4, 5)
    cells, read = cells_of(array)
    found, wanted = view(cells), view(array)
    np.testing.assert_array_equal(read(found), wanted)
    assert found.shape == wanted.shape and found.size == wanted.size
    assert found.is_dense == wanted.flags.c_contiguous


def test_cells_are_repeated_as_numpy_broadcasts() -> None:
    array = np.arange(6, dtype=np.uint16).reshape(2, 1, 3)
    cells, read = cells_of(array)
    for shape in ((2, 4, 3), (5, 2, 1, 3)):
        np.testing.assert_array_equal(read(cells.repeated(shape)), np.broadcast_to(array, shape))


@pytest.mark.parametrize(
    ("numbers", "runs"),
    [
        ([], []),
        ([4], [(0, 1, 4, 0)]),
        ([0, 0, 0], [(0, 3, 0, 0)]),
        ([0, 0, 1, 2], [(0, 2, 0, 0), (2, 4, 1, 1)]),
        ([3, 1, 7, 13], [(0, 2, 3, -2), (2, 4, 7, 6)]),
    ],
)
def test_numbers_fall_into_runs_that_rise_evenly(numbers: list[int], runs: list[Any]) -> None:
    assert even_runs(numbers) == runs


def test_what_numpy_refuses_is_refused() -> None:
    cells, _ = cells_of(np.zeros((2, 6), np.uint32))
    for call in (lambda: cells.reshape(5, -1), lambda: cells[:, ::2], lambda: cells.reshape(7)):
        with pytest.raises(ValueError, match=r"cannot reshape|step"):
            call()
    with pytest.raises(IndexError):
        cells[2]


def test_a_room_is_free_when_nothing_refers_to_it_and_not_before() -> None:
    memory = Memory()
    first, second = memory.room(100), memory.room(100)
    assert first.start + 100 <= second.start
    start = first.start
    third = memory.room(100)
    assert third.start not in (start, second.start)
    del first
    assert memory.room(100).start == start
    assert memory.n_bytes == 3 * 128


def test_the_kernel_and_the_recorder_number_steps_alike() -> None:
    source = Path(veilrun.mpc.__file__).parent / "_native" / "tape.c"
    if not source.exists():
        pytest.skip("an installed package has no sources")
    found = re.search(r"enum \{([^}]*)\}", source.read_text())
    assert found is not None
    assert [name.strip() for name in found[1].split(",")] == [op.name for op in Op]


@pytest.mark.parametrize("n", [1, 2, 7])
def test_anchored_scores_come_from_a_tape_too(n: int) -> None:
    def piece(ops: Operations, scores: Shared) -> Protocol[Any]:
        anchored = ops.anchored(scores, (NO_ANCHOR, PREVIOUS, FIRST))
        return (yield from ops.reveal(ops.window(anchored, 16, "scores")))

    value = np.random.default_rng(n).integers(-(2**12), 2**12, (3, n, n))
    ran = mpc_rig.run(piece, [(value, 16)])
    before = np.maximum(np.arange(n) - 1, 0)
    np.testing.assert_array_equal(ran.revealed[0][0], value[0])
    np.testing.assert_array_equal(
        ran.revealed[0][1], value[1] - value[1][np.arange(n), before][:, None]
    )
    np.testing.assert_array_equal(ran.revealed[0][2], value[2] - value[2][:, :1])


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("k", [1, 3, 8])
def test_products_of_odd_widths_come_from_a_tape_too(bits: int, k: int) -> None:
    def piece(ops: Operations, z: Shared) -> Protocol[Any]:
        (x,) = yield from ops.open(z)
        return (yield from ops.reveal(ops.linear((x, "w"))))

    random = np.random.default_rng(k)
    weight = random.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), (k, 19))
    value = random.integers(-(2**11), 2**11, (5, k))
    whole = mpc_rig.Whole({"w": (weight, None)})
    ran = mpc_rig.run(piece, [(value, bits)], whole, bits=bits)
    half = 1 << (bits - 1)
    np.testing.assert_array_equal(ran.revealed[0], (value @ weight + half) % (2 * half) - half)


@pytest.mark.parametrize("n", [3, 8])
def test_what_a_table_gives_fills_its_ring(n: int) -> None:
    """Of 3 bits a one-time table, of 8 one by keys."""

    def piece(ops: Operations, z: Shared) -> Protocol[Any]:
        (x,) = yield from ops.open(z)
        return (yield from ops.reveal(ops.shrink(ops.lookup("t", x), 4)))

    table = StepTable(np.random.default_rng(n).integers(0, 2**12, 2**n).astype(np.uint16), 12)
    assert table.by_keys == (n == 8)
    every = np.arange(-(2 ** (n - 1)), 2 ** (n - 1))
    ran = mpc_rig.run(piece, [(every, n)], mpc_rig.Whole(tables={"t": table}))
    np.testing.assert_array_equal(ran.revealed[0], ran.twin[0])


def test_threads_share_what_is_large() -> None:
    """Each of the steps that they share, with so much in it that three have something to do."""

    def piece(ops: Operations, rows: Shared, x: Shared, y: Shared, z: Shared) -> Protocol[Any]:
        rows_open, x_open, y_open, z_open = yield from ops.open(rows, x, y, z)
        mapped = ops.linear((rows_open, "w"))
        product = ops.window(ops.product(x_open, y_open), 32, "product")
        looked_up = ops.lookup("step", z_open), ops.lookup("line", z_open)
        return (yield from ops.reveal(mapped, product, *looked_up, *_flags(ops)))

    def _flags(ops: Operations) -> list[Shared]:
        return [flag for _, flag in ops.machine.flags]

    random = np.random.default_rng(5)
    values, slopes, guard = random.integers(0, 2, (3, 2**10)).astype(np.uint32)
    tables = {
        "step": StepTable(values, 32, guard),
        "line": LinearTable(values, slopes, 32, low_bits=0, guard=guard),
    }
    weight = random.integers(-100, 100, (24, 16 * 25))
    starts = [(5, 24), (60, 64, 32), (60, 32, 128), (2500,)]
    bits = [32, 32, 32, 10]
    entries = [random.integers(-500, 500, shape) for shape in starts]
    whole = mpc_rig.Whole({"w": (weight, None)}, tables=tables)
    ran = mpc_rig.run(piece, list(zip(entries, bits, strict=True)), whole)
    for revealed, twin in zip(ran.revealed, ran.twin, strict=True):
        np.testing.assert_array_equal(revealed, twin)


def loaded(shape: tuple[int, int], bits: int, more_bytes: int = 0) -> tuple[Loaded, np.ndarray]:
    """Party 2, about to open a value. more_bytes: of material than there should be."""
    assert native.KERNEL is not None

    def piece(ops: Operations, z: Shared) -> Protocol[Any]:
        (x,) = yield from ops.open(z)
        return (yield from ops.reveal(ops.value(ops.extend(x, bits + 8))))

    entry = np.zeros(shape, np.int64)
    plan = mpc_rig.trace(piece, [(entry, bits)])
    recorder = Recorder(native.KERNEL, plan, [(shape, bits)])
    party = Party(1, {}, {}, recorder.correlations, bytes(16), arithmetic=recorder)
    (cells,) = recorder.entries
    tape = recorder.tape(party, piece(Operations(party), Shared(cells, bits)))
    dealt = bytes(more_bytes + sum(packed_bytes(c.shape, c.bits) for c in plan.correlations[1:]))
    material = halves(plan, 1, Stream(mpc_rig.KEYS[1], "inference", 1), dealt)
    return tape.load(material, mpc_rig.TWEAK), wrap(entry.view(np.uint64), bits)


@needs_kernel
def test_a_frame_that_no_peer_sends_is_refused() -> None:
    n_bytes = packed_bytes((3, 5), 12)
    bad = (bytes(n_bytes - 1), bytes(n_bytes + 1), b"", bytes(n_bytes - 1) + b"\xff")
    for frame in bad:  # the last one has padding that is not zero
        inference, entry = loaded((3, 5), 12)
        protocol = inference.run(entry)
        assert len(next(protocol).outgoing["P1"]) == n_bytes
        with pytest.raises(DecodeError):
            protocol.send({"P1": frame})
    inference, entry = loaded((3, 5), 12)
    protocol = inference.run(entry)
    next(protocol)
    assert protocol.send({"P1": bytes(n_bytes)}).awaited == frozenset()


@needs_kernel
@pytest.mark.parametrize("more_bytes", [-1, 1])
def test_material_of_another_length_is_refused_before_anything_runs(more_bytes: int) -> None:
    with pytest.raises(DecodeError, match=r"too many|too early"):
        loaded((3, 5), 12, more_bytes)


@needs_kernel
def test_material_is_for_one_run() -> None:
    inference, entry = loaded((3, 5), 12)
    next(inference.run(entry))
    with pytest.raises(AssertionError, match="one run"):
        next(inference.run(entry))


@needs_kernel
def test_a_loaded_tape_does_not_say_what_is_in_it() -> None:
    inference, _ = loaded((3, 5), 12)
    assert repr(inference) == "Loaded(secret)"
