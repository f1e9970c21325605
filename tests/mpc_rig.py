"""Runs a piece of a network through everybody: tracer, dealer, both parties, and the twin."""

from __future__ import annotations

import contextlib
import unittest.mock
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from veilrun.mpc import native, ring
from veilrun.mpc.machines.dealer import Dealer
from veilrun.mpc.machines.party import PARTIES, Party
from veilrun.mpc.machines.tracer import Tracer
from veilrun.mpc.machines.twin import Overflow, Twin
from veilrun.mpc.material import halves
from veilrun.mpc.native import Feature, Kernel
from veilrun.mpc.operations import Operations
from veilrun.mpc.plan import Plan
from veilrun.mpc.prg import Stream
from veilrun.mpc.shares import Shared, dtype_of, wrap
from veilrun.mpc.tables import Table
from veilrun.mpc.tape.recorder import Recorder
from veilrun.mpc.weights import Dense, Exact
from veilrun.transport.connection import Frame
from veilrun.transport.rounds import Cost, Protocol, simulate

TWEAK = b"0123456789abcdef"
KEYS = (b"\x01" * 32, b"\x02" * 32)
Entries = list[tuple[np.ndarray, int]]
Piece = Callable[..., Protocol[Any]]
"""(operations, entry shared value ...) -> whatever it returns from `reveal`."""


@dataclass
class Ran:
    """revealed: what party 1 learned. twin: what the twin says. frames: all that were sent."""

    revealed: tuple[np.ndarray, ...]
    twin: tuple[np.ndarray, ...]
    plan: Plan
    cost: Cost
    overflows: list[Overflow]
    frames: list[Frame]


@dataclass
class Whole:
    """Integers of the model: matrices name -> (weight, bias); constants; tables."""

    matrices: Mapping[str, tuple[np.ndarray, np.ndarray | None]] = field(default_factory=dict)
    constants: Mapping[str, np.ndarray] = field(default_factory=dict)
    tables: Mapping[str, Table] = field(default_factory=dict)


def split(value: np.ndarray, bits: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two uniform halves of signed integers."""
    whole = wrap(value.astype(np.int64).view(np.uint64), bits)
    first = wrap(rng.integers(0, 2**64, value.shape, dtype=np.uint64), bits)
    return first, wrap(whole - first, bits)


def run(
    piece: Piece,
    entries: Entries,
    whole: Whole | None = None,
    *,
    bits: int = 32,
    serial: int = 1,
    seed: int = 0,
    is_taped: bool = True,
) -> Ran:
    """entries: (signed integers, ring bits) of what the piece starts from. bits: of matrices.

    What the dealer wrote, what the plan says and what was sent are compared on the way; and the
    parties with what they say from tapes, unless `is_taped` is false.
    """
    whole = whole or Whole()
    plan = trace(piece, entries, whole)
    dealt = _deal(piece, entries, whole, bits, serial)
    bill = plan.bill
    assert tuple(map(len, dealt)) == (bill.to_p1_bytes, bill.to_p2_bytes)
    rounding = _Rounding()
    parties = _parties(entries, whole, plan, dealt, bits, serial, seed, rounding)
    frames: list[Frame] = []

    def halves_of(index: int) -> Iterator[Any]:
        return halves(plan, index, Stream(KEYS[index], "inference", serial), dealt[index])

    protocols = {
        name: piece(Operations(party), *starts)
        for name, (party, starts) in zip(PARTIES, parties, strict=True)
    }
    results, cost = simulate(protocols, watch=frames.append)
    assert [party.n_left for party, _ in parties] == [0, 0]
    sent = tuple(sum(len(f.content) for f in frames if f.sender == name) for name in PARTIES)
    assert sent == (bill.p1_to_p2_bytes, bill.p2_to_p1_bytes)
    if is_taped:
        for kernel in _kernels():
            taped: list[Frame] = []
            protocols = {
                name: _from_tape(piece, party, starts, plan, halves_of(index), kernel)
                for index, (name, (party, starts)) in enumerate(zip(PARTIES, parties, strict=True))
            }
            again, _ = simulate(protocols, watch=taped.append)
            assert [frame.content for frame in taped] == [frame.content for frame in frames]
            for one, other in zip(again["P1"], results["P1"], strict=True):
                np.testing.assert_array_equal(one, other)
                assert one.dtype == other.dtype
    twin = Twin(
        {
            name: Exact(w.astype(np.float64), None if b is None else b.astype(np.int64))
            for name, (w, b) in whole.matrices.items()
        },
        whole.constants,
        whole.tables,
        rounding.low_bits,
    )
    starts = [Shared(value.astype(np.int64), b) for value, b in entries]
    plain = _finish(piece(Operations(twin), *starts))
    return Ran(results["P1"], plain, plan, cost, twin.overflows, frames)


def _kernels() -> list[Kernel]:
    """The kernel as it is, and as it is on a processor with AES alone."""
    kernel = native.KERNEL
    if kernel is None or not kernel.has_aes:
        return []
    return [kernel, kernel.limited(Feature.AES)]


def _from_tape(
    piece: Piece,
    party: Party,
    starts: list[Shared],
    plan: Plan,
    correlations: Iterator[Any],
    kernel: Kernel,
) -> Protocol[Any]:
    shapes = [(start.shape, start.bits) for start in starts]
    recorder = Recorder(kernel, plan, shapes, n_threads=3)
    recording = Party(
        party.index, party.matrices, party.tables, recorder.correlations, bytes(16),
        arithmetic=recorder,
    )  # fmt: skip
    cells = [Shared(one, z.bits) for one, z in zip(recorder.entries, starts, strict=True)]
    tape = recorder.tape(recording, piece(Operations(recording), *cells))
    with rubbish():
        inference = tape.load(correlations, TWEAK)
    return inference.run(*(start.array for start in starts))


@contextlib.contextmanager
def rubbish() -> Iterator[None]:
    """New memory is full of it, as it may be: nothing may depend on it."""
    real = native.passing

    def full(n_bytes: int) -> np.ndarray:
        memory = real(n_bytes)
        memory[:] = np.random.default_rng(0).integers(0, 256, n_bytes, dtype=np.uint8)
        return memory

    with unittest.mock.patch.object(native, "passing", full):
        yield


def trace(piece: Piece, entries: Entries, whole: Whole | None = None) -> Plan:
    """What the piece needs."""
    whole = whole or Whole()
    tracer = Tracer({name: w.shape[1] for name, (w, _) in whole.matrices.items()}, whole.tables)
    _finish(piece(Operations(tracer), *(tracer.shared(v.shape, b) for v, b in entries)))
    return tracer.plan


def _deal(
    piece: Piece, entries: Entries, whole: Whole, bits: int, serial: int
) -> tuple[bytes, bytes]:
    dtype = dtype_of(bits)
    sinks = (bytearray(), bytearray())
    dealer = Dealer(
        {
            name: Dense(
                ring.pack(w.astype(np.int64).astype(dtype)),
                None if b is None else b.astype(np.int64).astype(dtype),
            )
            for name, (w, b) in whole.matrices.items()
        },
        {name: c.astype(np.int64).astype(dtype) for name, c in whole.constants.items()},
        whole.tables,
        (Stream(KEYS[0], "inference", serial), Stream(KEYS[1], "inference", serial)),
        (sinks[0].extend, sinks[1].extend),
        TWEAK,
    )
    _finish(piece(Operations(dealer), *(dealer.unknown(v.shape, b) for v, b in entries)))
    return bytes(sinks[0]), bytes(sinks[1])


def _parties(
    entries: Entries,
    whole: Whole,
    plan: Plan,
    dealt: tuple[bytes, bytes],
    bits: int,
    serial: int,
    seed: int,
    rounding: _Rounding,
) -> list[tuple[Party, list[Shared]]]:
    """Both parties, and their halves of the entries."""
    rng = np.random.default_rng(seed)
    halved = [split(value, b, rng) for value, b in entries]
    weights = {name: split(w, bits, rng) for name, (w, _) in whole.matrices.items()}
    result = []
    for index in range(2):
        stream = Stream(KEYS[index], "inference", serial)
        party = Party(
            index,
            {name: Dense(ring.pack(half[index])) for name, half in weights.items()},
            whole.tables,
            halves(plan, index, stream, dealt[index]),
            TWEAK,
            watch_rounding=rounding.see_share,
            watch_mask=rounding.see_mask(index),
        )
        starts = [Shared(half[index], b) for half, (_, b) in zip(halved, entries, strict=True)]
        result.append((party, starts))
    return result


class _Rounding:
    """What decides each rounding, in party 1's order: its share, or both halves of a mask."""

    def __init__(self) -> None:
        self._seen: list[np.ndarray | int] = []
        self._masks: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
        self._next = 0

    def see_share(self, share: np.ndarray, by: int) -> None:
        self._seen.append(share.astype(np.int64))

    def see_mask(self, index: int) -> Callable[[np.ndarray, int], None]:
        def see(mask: np.ndarray, bits: int) -> None:
            if index == 0:
                self._seen.append(len(self._masks[0]))
            self._masks[index].append(mask.astype(np.int64))

        return see

    def low_bits(self, shape: tuple[int, ...], bits: int) -> np.ndarray:
        seen = self._seen[self._next]
        self._next += 1
        whole = self._masks[0][seen] + self._masks[1][seen] if isinstance(seen, int) else seen
        assert whole.shape == shape
        return whole & ((1 << bits) - 1)


def _finish(protocol: Protocol[Any]) -> Any:
    try:
        next(protocol)
    except StopIteration as end:
        return end.value
    raise AssertionError("a machine without a peer waits for one")
