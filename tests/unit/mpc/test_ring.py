"""Ring arithmetic: exact, and the same in the kernel, with any features of it, and in numpy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from veilrun.errors import DecodeError, UsageError
from veilrun.mpc import fallback, native, ring
from veilrun.mpc.native import Feature

NATIVE = native.load()
IMPLEMENTATIONS = {"numpy": None}
if NATIVE is not None:
    IMPLEMENTATIONS |= {
        "native": NATIVE,
        "avx512": NATIVE.limited(Feature.AVX512 | Feature.AVX2),
        "avx2": NATIVE.limited(Feature.AVX2),
        "plain": NATIVE.limited(Feature(0)),
    }
DTYPES = [np.uint8, np.uint16, np.uint32, np.uint64]


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request, monkeypatch):
    monkeypatch.setattr(native, "KERNEL", IMPLEMENTATIONS[request.param])
    return request.param


def random(rng, shape, dtype):
    return rng.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def exact(x, y):
    """The product by numpy's own integers, which wrap."""
    return np.matmul(x.astype(np.uint64), y.astype(np.uint64)).astype(x.dtype)


# --- products -------------------------------------------------------------------------------

SHAPES = [
    (1, 1, 1),
    (8, 64, 48),
    (9, 65, 17),
    (3, 1, 33),
    (1, 513, 15),
    (129, 7, 16),
    (31, 1030, 5),
]


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("fill", ["random", "ones", "high", "zero"])
def test_matmul_is_exact(implementation, dtype, shape, fill):
    rng, (rows, k, n) = np.random.default_rng(1), shape
    top = np.iinfo(dtype).max
    x, w = random(rng, (rows, k), dtype), random(rng, (k, n), dtype)
    if fill != "random":
        value = {"ones": top, "high": top // 2 + 1, "zero": 0}[fill]
        x, w = np.full_like(x, value), np.full_like(w, value)
    packed = ring.pack(w)
    assert (packed.shape, packed.dtype) == (w.shape, w.dtype)
    for n_threads in (1, 3):
        result = ring.matmul(x, packed, n_threads=n_threads)
        assert result.dtype == dtype
        np.testing.assert_array_equal(result, exact(x, w))
    np.testing.assert_array_equal(ring.matmul(x, w), exact(x, w))


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
@pytest.mark.parametrize("shape", [(3, 1, 1, 1), (5, 33, 31, 17), (2, 128, 64, 64), (4, 3, 128, 7)])
def test_matmul_batch_is_exact(implementation, dtype, shape):
    rng, (batch, rows, k, n) = np.random.default_rng(2), shape
    x, y = random(rng, (batch, rows, k), dtype), random(rng, (batch, k, n), dtype)
    for n_threads in (1, 2):
        result = ring.matmul_batch(x, y, n_threads=n_threads)
        np.testing.assert_array_equal(result, exact(x, y))


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_products_with_an_empty_side(implementation, dtype):
    assert ring.matmul(np.ones((0, 3), dtype), np.ones((3, 5), dtype)).shape == (0, 5)
    assert ring.matmul(np.ones((2, 3), dtype), np.ones((3, 0), dtype)).shape == (2, 0)
    assert not ring.matmul(np.ones((2, 0), dtype), np.ones((0, 5), dtype)).any()
    assert ring.matmul_batch(np.ones((0, 2, 3), dtype), np.ones((0, 3, 4), dtype)).size == 0


def test_operands_need_no_order_and_no_alignment(implementation):
    rng = np.random.default_rng(3)
    x, w = random(rng, (6, 10), np.uint32), random(rng, (10, 20), np.uint32)
    crooked = np.frombuffer(b"." + w.tobytes(), np.uint32, offset=1).reshape(w.shape)
    np.testing.assert_array_equal(ring.matmul(x.T.copy().T, crooked), exact(x, w))
    np.testing.assert_array_equal(ring.matmul(x[::2], w[:, ::-1]), exact(x[::2], w[:, ::-1]))


def test_a_packed_operand_keeps_its_value_and_its_implementation(implementation, monkeypatch):
    rng = np.random.default_rng(4)
    x, w = random(rng, (3, 40), np.uint32), random(rng, (40, 24), np.uint32)
    expected, packed = exact(x, w), ring.pack(w)
    w[:] = 0
    monkeypatch.setattr(native, "KERNEL", None)
    np.testing.assert_array_equal(ring.matmul(x, packed), expected)


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_numpy_products_of_deep_operands_are_split(monkeypatch, dtype):
    monkeypatch.setattr(fallback, "_MAX_DEPTH", 7)
    monkeypatch.setattr(fallback, "_MAX_COLUMNS", 4)
    rng = np.random.default_rng(5)
    x, w = random(rng, (3, 30), dtype), random(rng, (30, 9), dtype)
    np.testing.assert_array_equal(fallback.matmul(x, w), exact(x, w))


def test_the_deepest_numpy_product_is_exact():
    assert fallback._MAX_DEPTH * (2**16 - 1) ** 2 < 2**53


@given(st.integers(0, 2**32), st.integers(1, 20), st.integers(0, 70), st.integers(1, 40))
def test_native_products_equal_numpys(seed, rows, k, n):
    rng = np.random.default_rng(seed)
    for dtype in (np.uint16, np.uint32):
        x, w = random(rng, (rows, k), dtype), random(rng, (k, n), dtype)
        x[:, ::3], w[::4] = np.iinfo(dtype).max, np.iinfo(dtype).max
        np.testing.assert_array_equal(ring.matmul(x, w), fallback.matmul(x, w))


def test_products_that_do_not_fit_are_refused():
    x = np.zeros((2, 3), np.uint32)
    for w in (np.zeros((4, 2), np.uint32), np.zeros((3, 2), np.uint16), np.zeros(3, np.uint32)):
        with pytest.raises(UsageError):
            ring.matmul(x, w)
    for bad in (x.astype(np.uint64), x.astype(np.int32), x[0]):
        with pytest.raises(UsageError):
            ring.matmul(bad, np.zeros((3, 2), np.uint32))
        with pytest.raises(UsageError):
            ring.pack(bad)
    with pytest.raises(UsageError):
        ring.matmul_batch(np.zeros((2, 3, 4), np.uint32), np.zeros((1, 4, 5), np.uint32))
    with pytest.raises(UsageError):
        ring.matmul_batch(x, x)


# --- bits -----------------------------------------------------------------------------------


def reference_bits(values, n_bits):
    number = sum((int(v) & (2**n_bits - 1)) << (i * n_bits) for i, v in enumerate(values.flat))
    return number.to_bytes(-(-values.size * n_bits // 8), "little")


@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_of_every_width_come_back(implementation, dtype):
    rng = np.random.default_rng(6)
    for n_bits in range(1, 8 * np.dtype(dtype).itemsize + 1):
        for n in (0, 1, 2, 7, 8, 9, 33):
            values = random(rng, n, dtype)
            data = ring.pack_bits(values, n_bits)
            assert data == reference_bits(values, n_bits)
            back = ring.unpack_bits(data, n_bits, n, dtype)
            assert back.dtype == dtype
            np.testing.assert_array_equal(back, values & np.array(2**n_bits - 1, dtype))


@pytest.mark.parametrize("n_bits", [5, 24, 31, 48, 61, 64])
def test_many_values_of_any_shape(implementation, n_bits):
    values = random(np.random.default_rng(7), (3, 50_001), np.uint64).T
    data = ring.pack_bits(values, n_bits)
    back = ring.unpack_bits(memoryview(data), n_bits, values.size, np.uint64)
    low = values.reshape(-1) & np.uint64(2**n_bits - 1)
    np.testing.assert_array_equal(back, low)


def test_bytes_at_any_address(implementation):
    values = np.arange(100, dtype=np.uint32)
    view = memoryview(b"." + ring.pack_bits(values, 32))[1:]
    np.testing.assert_array_equal(ring.unpack_bits(view, 32, 100, np.uint32), values)


@given(st.integers(1, 64), st.lists(st.integers(0, 2**64 - 1), max_size=40))
def test_packed_bits_are_the_reference(n_bits, values):
    array = np.array(values, np.uint64)
    data = ring.pack_bits(array, n_bits)
    assert data == reference_bits(array, n_bits) == fallback.pack_bits(array, n_bits)


@given(st.binary(max_size=40), st.integers(1, 64), st.integers(0, 100))
def test_bytes_from_a_peer_are_values_or_a_decode_error(data, n_bits, n):
    try:
        values = ring.unpack_bits(data, n_bits, n, np.uint64)
    except DecodeError:
        n_used = n * n_bits
        is_padded = int.from_bytes(data, "little") >> n_used
        assert len(data) != -(-n_used // 8) or is_padded
    else:
        assert ring.pack_bits(values, n_bits) == data


def test_wrong_lengths_and_padding_are_refused(implementation):
    data = ring.pack_bits(np.array([1, 2, 3], np.uint16), 5)
    zeros = np.zeros(3, np.uint16)
    for bad in (data[:-1], data + b"\0", b"", data[:-1] + bytes([data[-1] | 0x80])):
        with pytest.raises(DecodeError):
            ring.unpack_bits(bad, 5, 3, np.uint16)
        with pytest.raises(DecodeError):
            ring.add_packed(zeros, zeros, bad, 5)


@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize("shape", [(0,), (1,), (9,), (3, 341), (1024,), (1025,), (64, 50)])
def test_sums_are_packed_and_added_in_one_pass(implementation, dtype, shape):
    rng = np.random.default_rng(9)
    a, b, c = (random(rng, shape[::-1], dtype).T for _ in range(3))  # not in C's order
    width = 8 * np.dtype(dtype).itemsize
    for n_bits in {1, 5, 10, 16, 20, 24, 32, 48, width - 1, width} & set(range(width + 1)):
        packed = ring.pack_sum(a, b, n_bits)
        assert packed == ring.pack_bits(a + b, n_bits)
        total = ring.add_packed(c, a, packed, n_bits)
        assert total.dtype == dtype
        low = np.array(2**n_bits - 1, dtype)
        np.testing.assert_array_equal(total, (c + a + ((a + b) & low)) & low)


def test_sums_of_arrays_that_differ_are_refused():
    one = np.zeros((2, 3), np.uint32)
    for other in (one.T, one.astype(np.uint64), one.astype(np.int32)):
        with pytest.raises(UsageError):
            ring.pack_sum(one, other, 8)
        with pytest.raises(UsageError):
            ring.add_packed(other, one, bytes(6), 8)
    with pytest.raises(UsageError):
        ring.pack_sum(one, one, 33)


def test_widths_and_dtypes_that_do_not_exist_are_refused():
    values = np.zeros(3, np.uint16)
    for n_bits in (0, -1, 17):
        with pytest.raises(UsageError):
            ring.pack_bits(values, n_bits)
        with pytest.raises(UsageError):
            ring.unpack_bits(b"", n_bits, 0, np.uint16)
    with pytest.raises(UsageError):
        ring.pack_bits(values.astype(np.int16), 4)
    with pytest.raises(UsageError):
        ring.unpack_bits(b"", 4, 0, np.float32)
    with pytest.raises(UsageError):
        ring.unpack_bits(b"", 4, -1, np.uint16)


# --- reads ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_gather_reads_each_table_once(implementation, dtype):
    rng = np.random.default_rng(8)
    tables = random(rng, (50, 16), dtype)
    indices = rng.integers(0, 16, 50, dtype=np.uint32)
    result = ring.gather(tables, indices)
    assert result.dtype == dtype
    np.testing.assert_array_equal(result, [tables[i, at] for i, at in enumerate(indices)])
    np.testing.assert_array_equal(ring.gather(tables[:, ::-1], 15 - indices), result)
    assert ring.gather(tables[:0], indices[:0]).shape == (0,)


def test_reads_beyond_a_table_are_refused(implementation):
    tables = np.zeros((2, 16), np.uint32)
    with pytest.raises(UsageError):
        ring.gather(tables, np.array([3, 16], np.uint32))
    with pytest.raises(UsageError):
        ring.gather(tables, np.array([3], np.uint32))
    with pytest.raises(UsageError):
        ring.gather(tables, np.array([3, -1], np.int32))


# --- the kernel -----------------------------------------------------------------------------


PARTS = [(0, 2, 1), (1, 4, 1), (10, 3, 4), (64, 2, 32), (7, 7, 1)]


@pytest.mark.parametrize(("n_items", "n_threads", "unit"), PARTS)
def test_parts_cover_everything_once(n_items, n_threads, unit):
    seen = []
    native.spread(lambda first, end: seen.extend(range(first, end)), n_items, n_threads, unit)
    assert sorted(seen) == list(range(n_items))


def test_a_failure_in_any_part_is_raised():
    def fail(first, end):
        raise ValueError(first)

    with pytest.raises(ValueError, match="0"):
        native.spread(fail, 4, 2)


def test_a_library_that_is_not_the_kernel_is_not_loaded(monkeypatch):
    monkeypatch.setattr(native, "_NAME", "math")
    assert native.load() is None
    monkeypatch.setattr(native, "_NAME", "veilrun.mpc.ring")
    assert native.load() is None
    monkeypatch.setattr(native, "_NAME", "veilrun.mpc.nothing")
    assert native.load() is None


@pytest.mark.skipif(NATIVE is None, reason="the kernel is not built")
def test_a_kernel_of_another_version_is_not_loaded(monkeypatch):
    monkeypatch.setattr(native, "_ABI", 0)
    assert native.load() is None
