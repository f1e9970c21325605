"""The `Arithmetic` of a party that has no values yet: it writes down what is to be done to them.

A gate's `run` and the network go through once, on cells instead of arrays, and each thing they do
becomes a step of a tape. What a network does follows from shapes alone, never from a value, so
one tape serves every inference of its length.

Not recorded: look-ups of several inputs, and what `Party.watch_rounding` and `watch_mask` see.
"""

from __future__ import annotations

import math
from collections.abc import Sequence, Set
from dataclasses import replace
from itertools import accumulate
from typing import Any, Final, final

from veilrun.mpc import dpf, ring
from veilrun.mpc.arithmetic import Key
from veilrun.mpc.dpf import Domain, Rows
from veilrun.mpc.machines.party import Party
from veilrun.mpc.native import Kernel, address, contiguous
from veilrun.mpc.plan import Correlation, Keys, Plan, Shape, packed_bytes
from veilrun.mpc.shares import Array, Shared, dtype_of
from veilrun.mpc.tape.cells import Cells, Memory, even_runs
from veilrun.mpc.tape.steps import STEP_BYTES, Op, step
from veilrun.mpc.tape.tape import NOBODY, Result, Tape, Turn
from veilrun.mpc.weights import Dense, Matrix, Residual
from veilrun.transport.rounds import Protocol

_MAX_AXES: Final = 4


@final
class Recorder:
    """Cells stand wherever `Arithmetic` says arrays, hence so much `Any`.

    kernel: that the tape will run on, with AES. plan: of what is recorded.
    entries: shapes and rings of what it starts from. n_threads: that the tape will run on.
    correlations, entries: as cells.
    """

    def __init__(
        self,
        kernel: Kernel,
        plan: Plan,
        entries: Sequence[tuple[Shape, int]],
        n_threads: int = 1,
    ) -> None:
        self._kernel = kernel
        self._n_threads = n_threads
        self._memory = Memory()
        self._steps = bytearray()
        self._fixed: list[object] = []  # what steps point at, beside the memory
        domains = {one.domain for one in plan.correlations if isinstance(one, Keys)}
        self._aes_keys = {
            domain: self._cells((len(dpf.aes_keys_of(bytes(16), domain).data),), 1)
            for domain in domains
        }
        self._turns: list[Turn] = []
        self._sent: Cells | None = None
        self._received: Cells | None = None
        self.correlations: Any = [self._correlation(one) for one in plan.correlations]
        self.entries: Any = [self._cells(shape, _item(bits)) for shape, bits in entries]

    def tape(self, party: Party, network: Protocol[Any]) -> Tape:
        """All that the network does as that party, whose arithmetic this is."""
        places = [
            tuple(one.start for one in given) if isinstance(given, tuple) else (given.start,)
            for given in self.correlations
        ]
        entries = tuple(one.start for one in self.entries)
        results = self._follow(network, party.peer)
        return Tape(
            kernel=self._kernel,
            n_threads=self._n_threads,
            peer=party.peer,
            steps=bytes(self._steps),
            turns=tuple(self._turns),
            n_bytes=self._memory.n_bytes,
            correlations=tuple(places),
            entries=entries,
            aes_keys={domain: cells.start for domain, cells in self._aes_keys.items()},
            results=results,
            flags=tuple((name, flag.bits) for name, flag in party.flags),
            fixed=tuple(self._fixed),
        )

    def _follow(self, network: Protocol[Any], peer: str) -> Any:
        """Go through it, with empty frames; what it returns."""
        try:
            round_ = next(network)
            while True:
                self._turn(round_.awaited)
                round_ = network.send({peer: b""})
        except StopIteration as end:
            self._turn(NOBODY)
            return end.value

    def _turn(self, awaited: Set[str] | None) -> None:
        """Steps up to here are done before a frame goes out or is waited for."""
        n_steps = len(self._steps) // STEP_BYTES
        sent, received = _span(self._sent), _span(self._received)
        self._turns.append(Turn(n_steps, received, sent, awaited))
        self._sent = self._received = None

    # --- what steps are written with ---

    def _correlation(self, wanted: Correlation) -> Any:
        if isinstance(wanted, Keys):
            n, each = wanted.n_keys, wanted.domain.correction_bytes
            return self._cells((n, 16), 1), self._cells((n, each), 1)
        return self._cells(wanted.shape, _item(wanted.bits))

    def _cells(self, shape: Shape, item: int) -> Cells:
        return Cells.new(self._memory.room(math.prod(shape) * item), shape, item, self._copied)

    def _write(
        self, op: Op, words: Sequence[int], sizes: Sequence[int], places: Sequence[Cells | int]
    ) -> None:
        starts = [one.start if isinstance(one, Cells) else one for one in places]
        self._steps += step(op, words, sizes, starts)

    def _place(self, array: Array) -> int:
        """Where an array lies that stays as it is."""
        array = contiguous(array)
        self._fixed.append(array)
        return address(array)

    def _copied(self, a: Cells) -> Cells:
        out = self._cells(a.shape, a.item)
        self._copy(a, out)
        return out

    def _copy(self, a: Cells, out: Cells) -> None:
        missing = _MAX_AXES - len(a.shape)
        sizes, zeros = (1,) * missing + a.shape, (0,) * missing
        strides = (*zeros, *a.strides, *zeros, *out.strides)
        self._write(Op.COPY, [a.item], sizes, [a, out, *strides])

    def _binary(self, op: Op, a: Any, b: Any, bits: int, out: Cells | None = None) -> Any:
        left, right = a.dense(), b.repeated(a.shape).dense()
        out = self._cells(a.shape, a.item) if out is None else out
        self._write(op, [a.item, bits], [a.size], [left, right, out])
        return out

    def _unary(self, op: Op, a: Any, by: int, bits: int) -> Any:
        out = self._cells(a.shape, a.item)
        self._write(op, [a.item, bits, by], [a.size], [a.dense(), out])
        return out

    def _shifted(self, a: Any, by: int, bits: int, one: bool, item: int) -> Any:
        out = self._cells(a.shape, item)
        self._write(Op.SHRINK, [a.item, item, by, bits, one], [a.size], [a.dense(), out])
        return out

    def _whole_lanes(self, x: Cells) -> Cells:
        """Rows of a multiple of four bytes, as products read them; what fills them up meets zeros
        in the other operand."""
        if x.item == 4 or x.shape[-1] % 2 == 0:
            return x.dense()
        out = self._cells((*x.shape[:-1], x.shape[-1] + 1), x.item)
        view: Any = out.reshape(-1, out.shape[-1])
        self._copy(x.reshape(-1, x.shape[-1]), view[:, : x.shape[-1]])
        return out

    def _keys(self, key: Key, domain: Domain) -> tuple[list[int], list[Any]]:
        """Words and places of a batch of keys."""
        party, keys, _ = key
        words = [
            self._kernel.features, party, domain.n_bits, domain.out_bits, domain.n_levels,
            domain.n_blocks, domain.n_payloads,
        ]  # fmt: skip
        return words, [self._aes_keys[domain], *keys]

    def _frame(self, values: Sequence[Shared]) -> tuple[Cells, list[Cells]]:
        """A frame, and in it the part of each value."""
        sizes = [packed_bytes(z.shape, z.bits) for z in values]
        frame = self._cells((sum(sizes),), 1)
        ends = zip(sizes, accumulate(sizes), strict=True)
        return frame, [frame[end - size : end] for size, end in ends]

    def _scratch(self, domain: Domain) -> Cells:
        n_bytes = self._kernel.dpf_scratch_bytes(domain.n_levels)
        return self._cells((self._n_threads * n_bytes,), 1)

    # --- Arithmetic ---

    def add(self, a: Any, b: Any, bits: int) -> Any:
        return self._binary(Op.ADD, a, b, bits)

    def subtract(self, a: Any, b: Any, bits: int) -> Any:
        return self._binary(Op.SUBTRACT, a, b, bits)

    def negate(self, a: Any, bits: int) -> Any:
        return self._unary(Op.NEGATE, a, 0, bits)

    def raised(self, a: Any, by: int, bits: int) -> Any:
        return self._unary(Op.RAISE, a, by, bits)

    def sum(self, a: Any, axis: int, bits: int) -> Any:
        axes = [i for i in range(len(a.shape)) if i != axis % len(a.shape)]
        n = a.shape[axis]
        rows = a.transpose(*axes, axis % len(a.shape)).dense()
        shape = tuple(1 if i not in axes else length for i, length in enumerate(a.shape))
        out = self._cells(shape, a.item)
        self._write(Op.SUM, [a.item, bits], [a.size // n, n], [rows, out])
        return out

    def less_columns(self, a: Any, columns: Sequence[Array | None], bits: int) -> Any:
        out = self._cells(a.shape, a.item)
        for number, column in enumerate(columns):
            matrix, to = a[number], out[number]
            if column is None:
                self._copy(matrix, to)
                continue
            taken = self._cells(matrix.shape, a.item)
            for first, end, at, rise in even_runs(column.tolist()):
                entries = matrix[first:end, at : at + 1].repeated((end - first, matrix.shape[1]))
                down, across = matrix.strides
                along = replace(entries, strides=(down + rise * across, 0))
                self._copy(along, taken[first:end])
            self._binary(Op.SUBTRACT, matrix, taken, bits, to)
        return out

    def window(self, a: Any, from_bits: int, bits: int) -> Any:
        return a if from_bits == bits else self._shifted(a, 0, bits, False, _item(bits))

    def shrink(self, a: Any, by: int, bits: int, one: bool) -> Any:
        return self._shifted(a, by, bits, one, _item(bits))

    def upper(self, x: Any, bits: int, low_bits: int) -> Any:
        return self._shifted(x.reshape(-1), low_bits, bits - low_bits, False, 4)

    def lower(self, x: Any, low_bits: int) -> Any:
        return self._shifted(x.reshape(-1), 0, low_bits, False, 4)

    def scale(self, a: Any, table: Array, at: Any, bits: int) -> Any:
        out = self._cells(a.shape, a.item)
        places = [a.dense(), at, out, self._place(table)]
        self._write(Op.SCALE, [a.item, bits], [a.size], places)
        return out

    def join(self, parts: Any, axis: int) -> Any:
        axis = axis % len(parts[0].shape)
        shape = list(parts[0].shape)
        shape[axis] = sum(part.shape[axis] for part in parts)
        out: Any = self._cells(tuple(shape), parts[0].item)
        first = 0
        for part in parts:
            end = first + part.shape[axis]
            self._copy(part, out[(*[slice(None)] * axis, slice(first, end))])
            first = end
        return out

    def extend(self, x: Any, mask: Any, upper: Any, bits: int, wide: int) -> Any:
        item, given = _item(wide), [one.dense() for one in (x, mask, *upper)]
        array, rho, top = (self._cells(x.shape, size) for size in (item, item, 1))
        words = [x.item, given[2].item, item, bits, wide]
        self._write(Op.EXTEND, words, [x.size], [*given, array, rho, top])
        return array, rho, top

    def times(self, x: Any, y: Any, dealt: Any, rings: tuple[int, int], is_first: bool) -> Any:
        given = [one.dense() for one in (*x, *y, *dealt)]
        out = self._cells(x[0].shape, x[0].item)
        words = [given[-1].item, x[0].item, *rings, is_first]
        self._write(Op.TIMES, words, [y[0].size, x[0].shape[-1]], [*given, out])
        return out

    def squares(self, x: Any, dealt: Any, rings: tuple[int, int], is_first: bool) -> Any:
        given = [one.dense() for one in (*x, *dealt)]
        out = self._cells(dealt[0].shape, x[0].item)
        words = [given[-1].item, x[0].item, *rings, is_first]
        self._write(Op.SQUARES, words, [out.size, x[0].shape[-1]], [*given, out])
        return out

    def add_mapped(self, start: Any, x: Any, matrix: Matrix, bits: int) -> Any:
        out = self._cells(start.shape, start.item)
        if isinstance(matrix, Residual):
            places = [start.dense(), x.dense(), out]
            fixed = [self._place(one) for one in (matrix.gain, matrix.column)]
            sizes = [x.size // x.shape[-1], x.shape[-1]]
            self._write(Op.RESIDUAL, [x.item, bits], sizes, [*places, *fixed])
            return out
        if not isinstance(matrix, Dense):
            raise AssertionError("a party has shares of dense and diagonal maps only")
        rows, strips = self._whole_lanes(x), matrix.weight.strips
        sizes = [x.size // x.shape[-1], rows.shape[-1], start.shape[-1], strips.n_strips]
        places = [rows, out, self._place(strips.data)]
        self._write(Op.MATMUL, [self._kernel.features, x.item], sizes, places)
        return self._binary(Op.ADD, start, out, bits)

    def matmul(self, x: Any, y: Any) -> Any:
        k, m = y.shape[-2:]
        left, right = self._whole_lanes(x), y.dense()
        out = self._cells((*x.shape[:-1], m), x.item)
        n_bytes = ring.strips_bytes(k, m, dtype_of(8 * x.item))
        scratch = self._cells((self._n_threads * n_bytes,), 1)
        sizes = [y.size // (k * m), x.shape[-2], k, m]
        places = [left, right, scratch, out, n_bytes]
        self._write(Op.MATMUL_BATCH, [self._kernel.features, x.item], sizes, places)
        return out

    def gather(self, tables: Any, indexes: Any, bits: int) -> Any:
        out = self._cells(indexes.shape, tables.item)
        self._write(Op.GATHER, [tables.item], tables.shape, [tables.dense(), indexes, out])
        return self.window(out, 8 * tables.item, bits)

    def lookup(self, key: Key, indexes: Any, rows: Rows) -> Any:
        domain, (n_tables, stride) = rows.domain, rows.windows.shape
        words, places = self._keys(key, domain)
        out = self._cells((n_tables, indexes.size), domain.dtype.itemsize)
        self._fixed.append(rows)
        places += [indexes, self._scratch(domain), out, *rows.addresses]
        self._write(Op.LOOKUP, words, [indexes.size, n_tables, stride], places)
        return out

    def interpolate(
        self, key: Key, opened: Any, bits: int, rows: Rows, low_bits: int
    ) -> tuple[Any, Any]:
        if not dpf.has_lines(self._kernel, rows.domain):
            return self._interpolate(key, opened, bits, rows, low_bits)
        domain, flat = rows.domain, opened.reshape(-1)
        words, places = self._keys(key, domain)
        out, flagged = self._cells(flat.shape, domain.dtype.itemsize), self._cells((), 8)
        self._fixed.append(rows)
        quarters = rows.quarters
        places += [flat, self._scratch(domain), out, flagged, *quarters.addresses]
        sizes = [flat.size, flat.item, low_bits, quarters.are_narrow]
        self._write(Op.LINES, words, sizes, places)
        return out, self._shifted(flagged, 0, domain.out_bits, False, domain.dtype.itemsize)

    def _interpolate(
        self, key: Key, opened: Any, bits: int, rows: Rows, low_bits: int
    ) -> tuple[Any, Any]:
        """The same by a look-up of each of the rows."""
        key_bits, item = rows.domain.out_bits, rows.domain.dtype.itemsize
        indexes = self.upper(opened, bits, low_bits)
        low = self._shifted(opened.reshape(-1), 0, low_bits, False, item)
        found = self.lookup(key, indexes, rows)
        risen = self._binary(Op.MULTIPLY, low, found[1], key_bits)
        values = self.subtract(self.add(found[0], risen, key_bits), found[2], key_bits)
        if len(found) < 4:
            return values, found[0][:1].reshape(())  # no guard: nobody reads it
        return values, self.sum(found[3], 0, key_bits).reshape(())

    def packed(self, values: Sequence[Shared], masks: Any) -> bytes:
        self._sent, parts = self._frame(values)
        for number, (z, part) in enumerate(zip(values, parts, strict=True)):
            array: Any = z.array
            words, sizes = [array.item, z.bits], [array.size]
            if masks:
                places = [array.dense(), masks[number].dense(), part]
                self._write(Op.PACK_SUM, words, sizes, places)
            else:
                self._write(Op.PACK, words, sizes, [array.dense(), part])
        return b""

    def opened(self, frame: bytes, values: Sequence[Shared], masks: Any) -> Any:
        if len(self._steps) // STEP_BYTES != self._turns[-1].end:
            raise AssertionError("a frame is there before any step that follows its round")
        self._received, parts = self._frame(values)
        result = []
        for number, (z, part) in enumerate(zip(values, parts, strict=True)):
            array: Any = z.array
            out = self._cells(array.shape, array.item)
            words, sizes = [array.item, z.bits], [array.size, part.size]
            if masks:
                places = [array.dense(), masks[number].dense(), part, out]
                self._write(Op.ADD_PACKED, words, sizes, places)
            else:
                self._write(Op.UNPACK, words, sizes, [part, out])
                out = self._binary(Op.ADD, array, out, z.bits)
            result.append(out)
        return result

    def result(self, array: Any, bits: int) -> Any:
        dense = array.dense()
        self._fixed.append(dense.room)
        return Result(dense.start, dense.shape, dense.item, bits)


def _item(bits: int) -> int:
    return dtype_of(bits).itemsize


def _span(frame: Cells | None) -> tuple[int, int] | None:
    return None if frame is None else (frame.start, frame.size)
