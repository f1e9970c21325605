"""Every gate, through dealer, both parties and twin: right in the ring, and at its price."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import mpc_rig
import numpy as np
import pytest
from mpc_rig import Ran, Whole

from veilrun.errors import DecodeError
from veilrun.mpc import ring
from veilrun.mpc.arithmetic import Direct
from veilrun.mpc.gates import product
from veilrun.mpc.gates.costs import COSTS, GateCost
from veilrun.mpc.machines.party import Party
from veilrun.mpc.operations import Operations
from veilrun.mpc.plan import Keys, Share, packed_bytes
from veilrun.mpc.shares import Masked, Shared, dtype_of, signed
from veilrun.mpc.tables import ExpTable, LinearTable, StepTable, Table
from veilrun.transport.rounds import Protocol

RNG = np.random.default_rng(7)


def integers(bits: int, *shape: int) -> np.ndarray:
    """Signed, uniform over the ring, with both ends in it."""
    values = RNG.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), shape)
    flat = values.reshape(-1)
    ends = [-(2 ** (bits - 1)), 2 ** (bits - 1) - 1, 0, -1]
    flat[:4] = ends[: flat.size]
    return values


def in_ring(value: np.ndarray, bits: int) -> np.ndarray:
    half = 1 << (bits - 1)
    return (value + half) % (2 * half) - half


def agrees(ran: Ran) -> None:
    """What the parties reveal is what the twin says, bit for bit, in every ring."""
    assert len(ran.revealed) == len(ran.twin)
    for revealed, twin in zip(ran.revealed, ran.twin, strict=True):
        np.testing.assert_array_equal(revealed, twin)


# --- openings ---------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [3, 8, 16, 20, 24, 32, 48, 64])
def test_opening_and_revealing_give_the_value(bits: int) -> None:
    def piece(ops: Operations, z: Shared) -> Protocol[Any]:
        (x,) = yield from ops.open(z)
        return (yield from ops.reveal(_whole(ops.machine, x)))

    def _whole(machine: Any, x: Any) -> Shared:
        if not isinstance(machine, Party):
            return Shared(x.array, bits)
        if machine.is_first:
            return Shared(machine.arithmetic.subtract(x.array, x.mask, bits), bits)
        return Shared(machine.arithmetic.negate(x.mask, bits), bits)

    value = integers(bits, 5, 7) if bits < 64 else RNG.integers(-(2**62), 2**62, (5, 7))
    ran = mpc_rig.run(piece, [(value, bits)])
    np.testing.assert_array_equal(ran.revealed[0], value)
    assert ran.cost.n_rounds == 2


def test_an_opening_of_another_length_is_the_peers_fault() -> None:
    n_bytes = packed_bytes((3, 5), 12)
    for frame in (bytes(n_bytes - 1), bytes(n_bytes + 1), b"", bytes(n_bytes - 1) + b"\xff"):
        value, mask = np.zeros((3, 5), np.uint16), np.ones((3, 5), np.uint16)
        party = Party(0, {}, {}, [mask], bytes(16))
        opening = Operations(party).open(Shared(value, 12))
        assert len(next(opening).outgoing["P2"]) == n_bytes
        with pytest.raises(DecodeError):  # the last one has padding that is not zero
            opening.send({"P2": frame})


# --- products ---------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [16, 32])
def test_linear_maps_are_exact_in_the_ring_and_share_one_correction(bits: int) -> None:
    def piece(ops: Operations, z: Shared, y: Shared) -> Protocol[Any]:
        x, w = yield from ops.open(z, y)
        return (yield from ops.reveal(ops.linear((x, "a"), (w, "b"))))

    a, b = integers(bits, 9, 5), integers(bits, 4, 5)
    bias = integers(bits, 5)
    size = min(bits, 28)  # the twin is exact below 2^63
    x, y = integers(size, 3, 9), integers(size, 3, 4)
    ran = mpc_rig.run(
        piece, [(x, bits), (y, bits)], Whole({"a": (a, bias), "b": (b, None)}), bits=bits
    )
    want = np.array(x.astype(object) @ a + y.astype(object) @ b + bias)
    np.testing.assert_array_equal(ran.revealed[0], in_ring(want, bits).astype(np.int64))
    assert shares_of(ran) == [(3 * 5, bits)]


@pytest.mark.parametrize("bits", [12, 16, 20, 32])
def test_products_of_masked_matrices_are_exact(bits: int) -> None:
    def piece(ops: Operations, z: Shared, y: Shared) -> Protocol[Any]:
        x, w = yield from ops.open(z, y)
        z = ops.add(ops.product(x, w), ops.constant("c", (2, 1, 1), bits))
        return (yield from ops.reveal(ops.window(z, bits, "product")))

    size = min(bits, 28)  # the twin is exact below 2^63
    x, y = integers(size, 2, 3, 6), integers(size, 2, 6, 4)
    constant = integers(bits, 2, 1, 1)
    ran = mpc_rig.run(piece, [(x, bits), (y, bits)], Whole(constants={"c": constant}), bits=bits)
    want = np.matmul(x.astype(object), y.astype(object)) + constant
    np.testing.assert_array_equal(ran.revealed[0], in_ring(want, bits).astype(np.int64))


def test_a_product_uses_the_machines_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    real = ring.matmul_batch

    def watch(x: Any, y: Any, *, n_threads: int = 1) -> Any:
        seen.append(n_threads)
        return real(x, y, n_threads=n_threads)

    monkeypatch.setattr(ring, "matmul_batch", watch)
    left, right = (RNG.integers(0, 2**16, (2, 3, 3)).astype(np.uint32) for _ in range(2))
    party = Party(0, {}, {}, [np.zeros((2, 3, 3), np.uint32)], bytes(16), arithmetic=Direct(3))
    product.run(party, Masked(left, right, 32), Masked(right, left, 32))
    assert seen == [3]


# --- shrinking --------------------------------------------------------------------------


@pytest.mark.parametrize(("bits", "by"), [(16, 4), (32, 16), (48, 16), (64, 32), (24, 1)])
def test_shrinking_rounds_to_a_neighbour_without_bias(bits: int, by: int) -> None:
    def piece(ops: Operations, z: Shared) -> Protocol[Any]:
        return (yield from ops.reveal(ops.shrink(z, by)))

    value = integers(min(bits, 62) - 1, 40, 500)
    value[1:3] = np.array([[1 << (by - 1)], [-(1 << by) // 4]])  # one half; a quarter below 0
    ran = mpc_rig.run(piece, [(value, bits)])
    agrees(ran)
    error = ran.revealed[0] - (value >> by)
    assert set(np.unique(error)) <= {0, 1}
    for row, up in ((1, 0.5), (2, 0.75 if by > 1 else 0.5)):
        seen = error[row].mean()
        assert abs(seen - up) < 5 * math.sqrt(0.25 / 500) + 2.0**-by


# --- extension --------------------------------------------------------------------------


@pytest.mark.parametrize(("narrow", "wide"), [(8, 16), (20, 32), (24, 48), (16, 32), (12, 16)])
def test_extension_is_exact_for_every_number_it_is_made_for(narrow: int, wide: int) -> None:
    def piece(ops: Operations, z: Shared, factor: Shared) -> Protocol[Any]:
        x, y = yield from ops.open(ops.lift(z), factor)
        e = ops.extend(x, wide)
        return (yield from ops.reveal(ops.value(e), ops.times(e, y), ops.squares(e)))

    limit = 2 ** (narrow - 2)
    value = RNG.integers(-limit, limit, (6, 300))
    value[:, :5] = [-limit, limit - 1, 0, -1, 1]
    factor = integers(wide, 6, 1)
    ran = mpc_rig.run(piece, [(value, narrow), (factor, wide)])
    exact = value.astype(object)
    np.testing.assert_array_equal(ran.revealed[0], value)
    np.testing.assert_array_equal(ran.revealed[1], in_ring(exact * factor, wide).astype(np.int64))
    squares = (exact * exact).sum(axis=1, keepdims=True)
    np.testing.assert_array_equal(ran.revealed[2], in_ring(squares, wide).astype(np.int64))


def test_the_twin_reports_what_is_too_large_to_extend() -> None:
    def piece(ops: Operations, z: Shared) -> Protocol[Any]:
        (x,) = yield from ops.open(ops.lift(z))
        return (yield from ops.reveal(ops.value(ops.extend(x, 32))))

    fits = np.array([[2**18 - 1, -(2**18)]])
    assert not mpc_rig.run(piece, [(fits, 20)]).overflows
    (overflow,) = mpc_rig.run(piece, [(np.add(fits, [[1, 0]]), 20)]).overflows
    assert overflow.n_values == 1


# --- tables -----------------------------------------------------------------------------


def looked_up(table: Table, value: np.ndarray, bits: int) -> Ran:
    def piece(ops: Operations, z: Shared) -> Protocol[Any]:
        (x,) = yield from ops.open(z)
        found = ops.lookup("t", x)
        return (yield from ops.reveal(found, *(flag for _, flag in ops.machine.flags)))

    return mpc_rig.run(piece, [(value, bits)], Whole(tables={"t": table}))


@pytest.mark.parametrize("n", [2, 4, 5, 7, 8, 10])
@pytest.mark.parametrize("bits", [16, 32, 48])
def test_a_table_gives_its_entry_for_every_index(n: int, bits: int) -> None:
    dtype = dtype_of(bits)
    entries = RNG.integers(0, 2**bits, 2**n, dtype=np.uint64).astype(dtype)
    guard = (np.arange(2**n) % 3 == 0).astype(dtype)
    table = StepTable(entries, bits, guard)
    index = np.arange(2**n).reshape(2, -1)
    ran = looked_up(table, in_ring(index, n), n)
    agrees(ran)
    np.testing.assert_array_equal(ran.revealed[0], signed(entries, bits).reshape(2, -1))
    assert any(isinstance(c, Keys) for c in ran.plan.correlations) == table.by_keys
    if table.by_keys:
        assert int(ran.revealed[1]) == guard.sum()


@pytest.mark.parametrize(("n", "m", "bits"), [(2, 3, 16), (4, 4, 16), (5, 4, 32)])
def test_a_table_of_two_inputs(n: int, m: int, bits: int) -> None:
    def piece(ops: Operations, i: Shared, j: Shared) -> Protocol[Any]:
        x, y = yield from ops.open(i, j)
        return (yield from ops.reveal(ops.lookup("t", x, y)))

    entries = RNG.integers(0, 2**bits, (2**n, 2**m), dtype=np.uint64).astype(dtype_of(bits))
    i, j = (axis.reshape(-1) for axis in np.meshgrid(np.arange(2**n), np.arange(2**m)))
    whole = Whole(tables={"t": StepTable(entries, bits)})
    starts = [(in_ring(i, n), n), (in_ring(j, m), m)]
    ran = mpc_rig.run(piece, starts, whole, is_taped=False)
    np.testing.assert_array_equal(ran.revealed[0], signed(entries, bits)[i, j])


@pytest.mark.parametrize(("bits", "extra"), [(32, 0), (48, 16), (16, 0)])
def test_a_line_for_each_step_follows_a_smooth_function(bits: int, extra: int) -> None:
    n, low = 6, 4
    steps = np.arange(2**n)
    steps = np.where(steps < 2 ** (n - 1), steps, steps - 2**n)
    values, slopes = steps**2 << (low + extra), 2 * steps << extra  # x^2 / 2^low, by its tangents
    ring = dtype_of(bits + extra)
    wide = [v.astype(np.int64).astype(ring) for v in (values, slopes)]
    table = LinearTable(wide[0], wide[1], bits, low, extra, (np.abs(steps) > 28).astype(ring))
    x = np.arange(-(2 ** (n + low - 1)) + 2**low, 2 ** (n + low - 1) - 2**low).reshape(4, -1)
    ran = looked_up(table, x, n + low)
    agrees(ran)
    # A tangent is at most a step away: x^2 - (2 x s - s^2) = (x - s)^2 < 1 step^2; and rounding.
    error = x**2 / 2**low - ran.revealed[0]
    assert error.min() >= -1
    assert error.max() < 2**low + 1
    assert int(ran.revealed[1]) >= (np.abs(x) >= 29 << low).sum()


def test_the_exponential_is_exact_to_its_factors() -> None:
    n, low, factor = 6, 8, 12
    unit = 20 / 2 ** (n + low)  # a window of 20 nats
    steps = np.arange(2**n)
    steps = np.where(steps < 2 ** (n - 1), steps, steps - 2**n)
    values = np.rint(np.exp(steps * 2**low * unit) * 2.0**8).astype(np.uint64)
    table = ExpTable(values, unit, 32, low, 32, factor)
    x = RNG.integers(0, 2 ** (n + low - 1) - 2**low, (8, 100))
    ran = looked_up(table, x, n + low)
    agrees(ran)
    exact = np.exp(x * unit)
    # Entries round to 2^-9 of at least 1, both factors to 2^-13 of at least e^-step; then +-1.
    step = 2**low * unit
    relative = 2.0**-9 + 2.0**-13 * (1 + math.exp(step))
    assert (np.abs(ran.revealed[0] - exact) <= 1 + exact * relative * 2).all()


N_MANY = 70_001
"""More than 16 bits count: what one table reads in a layer of 128 tokens is more."""


@pytest.mark.parametrize("kind", ["step", "line"])
@pytest.mark.parametrize("n_bits", [32, 16])
def test_a_guard_counts_many_values(kind: str, n_bits: int) -> None:
    dtype = dtype_of(n_bits)
    entries, guard = np.zeros(256, dtype), np.ones(256, dtype)
    guard[0] = 0
    value = np.ones(N_MANY, np.int64)
    value[:5] = 0
    table: Table = StepTable(entries, n_bits, guard)
    if kind == "line":
        table, value = LinearTable(entries, entries, n_bits, 4, 0, guard), 16 * value + 4
    ran = looked_up(table, value, table.opened_bits)
    assert int(ran.revealed[1]) % 2**n_bits == int(ran.twin[1]) % 2**n_bits
    if n_bits == 32 and kind == "step":
        assert int(ran.revealed[1]) == N_MANY - 5
    elif n_bits == 32:  # a line may be taken from the entry beside
        assert N_MANY - 5 <= int(ran.revealed[1]) <= N_MANY


# --- prices -----------------------------------------------------------------------------


def shares_of(ran: Ran) -> list[tuple[int, int]]:
    return [(math.prod(c.shape), c.bits) for c in ran.plan.correlations if isinstance(c, Share)]


STEP = StepTable(np.zeros(256, np.uint32), 32)
SMALL = StepTable(np.zeros(16, np.uint16), 16)
LINE = LinearTable(np.zeros(64, np.uint32), np.zeros(64, np.uint32), 32, 4)
EXP = ExpTable(np.zeros(64, np.uint64), 0.01, 32, 10, 32, 12)
WHOLE = Whole(
    {"w": (np.ones((8, 16)), np.ones(16))},
    {"c": np.ones((4, 8))},
    {"step": STEP, "small": SMALL, "line": LINE, "exp": EXP},
)
ROWS = np.zeros((4, 8), np.int64)
PRICES: list[tuple[str, Callable[..., Any], int, GateCost]] = [
    ("linear", lambda ops, x: ops.linear((x, "w")), 32, COSTS["linear"](4 * 16, 32)),
    ("product", lambda ops, x: ops.product(x, x.moved(lambda a: a.transpose(1, 0))), 32,
     COSTS["product"](16, 32)),
    ("constant", lambda ops, x: ops.constant("c", (4, 8), 32), 32, COSTS["constant"](32, 32)),
    ("shrink", lambda ops, x: ops.shrink(ops.value(ops.extend(x, 48)), 8), 32,
     COSTS["extend"](32, 32, 48)),
    ("extend", lambda ops, x: ops.value(ops.extend(x, 32)), 24, COSTS["extend"](32, 24, 32)),
    ("step", lambda ops, x: ops.lookup("step", x), 8, COSTS["lookup"](32, STEP)),
    ("one-time", lambda ops, x: ops.lookup("small", x), 4, COSTS["lookup"](32, SMALL)),
    ("interpolate", lambda ops, x: ops.lookup("line", x), 10, COSTS["interpolate"](32, LINE)),
    ("exponential", lambda ops, x: ops.lookup("exp", x), 16, COSTS["exponential"](32, EXP)),
]  # fmt: skip


@pytest.mark.parametrize(("gate", "use", "bits", "price"), PRICES, ids=[p[0] for p in PRICES])
def test_a_gate_costs_what_it_declares(
    gate: str, use: Callable[..., Any], bits: int, price: GateCost
) -> None:
    found: list[Shared] = []

    def piece(ops: Operations, z: Shared) -> Protocol[Any]:
        (x,) = yield from ops.open(z)
        found.append(use(ops, x))
        return (yield from ops.reveal(found[-1]))

    ran = mpc_rig.run(piece, [(ROWS, bits)], WHOLE)
    n_out, out_bits = math.prod(found[0].shape), found[0].bits
    opening, reveal = COSTS["open"](ROWS.size, bits), COSTS["reveal"](n_out, out_bits)
    assert ran.cost.n_rounds == opening.n_rounds + price.n_rounds + reveal.n_rounds
    assert 8 * ran.cost.sent_bytes == opening.online_bits + price.online_bits + reveal.online_bits
    assert 8 * ran.plan.bill.offline_bytes == price.offline_bits


@pytest.mark.parametrize("gate", ["times", "squares"])
def test_what_uses_an_extended_value_costs_what_it_declares(gate: str) -> None:
    def piece(ops: Operations, z: Shared, y: Shared) -> Protocol[Any]:
        x, w = yield from ops.open(ops.lift(z), y)
        e = ops.extend(x, 48)
        return (yield from ops.reveal(ops.times(e, w) if gate == "times" else ops.squares(e)))

    ran = mpc_rig.run(piece, [(ROWS, 24), (ROWS[:, :1], 48)])
    n_rows, n = ROWS.shape[0], ROWS.size
    price = COSTS["times"](n, 24, 48) if gate == "times" else COSTS["squares"](n_rows, n, 24, 48)
    extension = COSTS["extend"](n, 24, 48)
    assert 8 * ran.plan.bill.offline_bytes == price.offline_bits + extension.offline_bits


def test_every_gate_has_a_price() -> None:
    from pathlib import Path

    from veilrun.mpc import gates

    files = {path.stem for path in Path(gates.__file__).parent.glob("*.py")}
    assert files - {"__init__", "costs"} == set(COSTS)
