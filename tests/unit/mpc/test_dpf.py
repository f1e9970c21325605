"""Point functions: shares of scaled unit vectors, and the same in the kernel and in numpy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from veilrun.errors import UsageError
from veilrun.mpc import dpf, native
from veilrun.mpc.dpf import Domain
from veilrun.mpc.native import Feature

NATIVE = native.load()
IMPLEMENTATIONS = {"numpy": None}
if NATIVE is not None:
    IMPLEMENTATIONS |= {
        "native": NATIVE,
        "aes": NATIVE.limited(Feature.AES),
        "no lines": NATIVE.limited(~Feature.VNNI),
        "no aes": NATIVE.limited(~(Feature.AES | Feature.VAES)),
    }
TWEAK = bytes(range(16))
SMALL = [(n_bits, out_bits) for n_bits in range(1, 9) for out_bits in (16, 32, 64)]
# For one payload and for two: which payload each table of a look-up is for.
CHOICES = [
    (1, (0,)),
    (1, (0, 0, 0)),
    (2, (0, 0)),
    (2, (1,)),
    (2, (0, 0, 1, 0)),
    (2, (1, 0, 1, 1)),
    (2, (1, 1, 1, 1)),
]


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request, monkeypatch):
    monkeypatch.setattr(native, "KERNEL", IMPLEMENTATIONS[request.param])
    return request.param


def look_up(
    party, seeds, corrections, indices, tables, domain, tweak, *, payload_of=None, n_threads=1
):
    rows = dpf.unroll(tables, domain, payload_of)
    return dpf.lookup(party, seeds, corrections, indices, rows, domain, tweak, n_threads=n_threads)


def seeds_of(rng, n):
    return rng.integers(0, 256, (2, n, 16), np.uint8)


def values_of(rng, shape, domain):
    return rng.integers(0, 2**domain.out_bits - 1, shape, domain.dtype, endpoint=True)


def unit_vectors(points, domain):
    units = np.zeros((len(points), domain.size), domain.dtype)
    units[np.arange(len(points)), points] = 1
    return units


@pytest.mark.parametrize(("n_bits", "out_bits"), SMALL)
def test_expansions_sum_to_the_unit_vector_at_every_point(implementation, n_bits, out_bits):
    domain = Domain(n_bits, out_bits)
    points = np.arange(domain.size, dtype=np.uint32)
    seeds = seeds_of(np.random.default_rng(n_bits), len(points))
    corrections = dpf.generate(points, *seeds, domain, TWEAK)
    assert corrections.shape == (len(points), domain.correction_bytes)
    shares = [dpf.expand(party, seeds[party], corrections, domain, TWEAK) for party in (0, 1)]
    assert shares[0].shape == (len(points), domain.size)
    np.testing.assert_array_equal(shares[0] + shares[1], unit_vectors(points, domain))


@pytest.mark.parametrize("n_payloads", [1, 2])
@pytest.mark.parametrize(("n_bits", "out_bits"), SMALL)
def test_expansions_sum_to_the_payload_at_every_point(implementation, n_bits, out_bits, n_payloads):
    domain, rng = Domain(n_bits, out_bits, n_payloads), np.random.default_rng(n_bits)
    # Every point with every kind of payload; two payloads of a key are of different kinds.
    kinds = np.array([0, 1, 2**out_bits - 1, 2 ** (out_bits - 1), 0], domain.dtype)
    points = np.repeat(np.arange(domain.size, dtype=np.uint32), len(kinds))
    payloads = np.stack([np.tile(np.roll(kinds, c), domain.size) for c in range(n_payloads)])
    payloads[:, 4::5] = values_of(rng, (n_payloads, domain.size), domain)
    seeds = seeds_of(rng, len(points))
    corrections = dpf.generate(points, *seeds, domain, TWEAK, payloads)
    assert corrections.shape == (len(points), domain.correction_bytes)
    shares = [dpf.expand(party, seeds[party], corrections, domain, TWEAK) for party in (0, 1)]
    expected = payloads[..., None] * unit_vectors(points, domain)
    np.testing.assert_array_equal(
        shares[0] + shares[1], expected if n_payloads > 1 else expected[0]
    )


@pytest.mark.parametrize("form", [*SMALL, (10, 32), (11, 64)])
@pytest.mark.parametrize(("n_payloads", "payload_of"), CHOICES)
@pytest.mark.parametrize("n", [3, 71])
def test_look_ups_sum_to_the_payload_times_the_entry(
    implementation, form, n_payloads, payload_of, n
):
    domain, rng = Domain(*form, n_payloads), np.random.default_rng(n)
    n = min(n, 6) if domain.n_bits > 9 else n
    points = rng.integers(0, domain.size, n, np.uint32)
    indices = rng.integers(0, 2**32, n, np.uint32)
    payloads = values_of(rng, (n_payloads, n), domain)
    tables = values_of(rng, (len(payload_of), domain.size), domain)
    seeds = seeds_of(rng, n)
    corrections = dpf.generate(points, *seeds, domain, TWEAK, payloads)
    shares = [
        look_up(
            p, seeds[p], corrections, indices, tables, domain, TWEAK,
            payload_of=payload_of, n_threads=1 + p,
        )
        for p in (0, 1)
    ]  # fmt: skip
    entries = tables[:, (indices.astype(np.int64) - points) % domain.size]
    np.testing.assert_array_equal(shares[0] + shares[1], payloads[list(payload_of)] * entries)


@pytest.mark.parametrize(("n_bits", "out_bits"), [*SMALL, (12, 64), (13, 32)])
@pytest.mark.parametrize("n_tables", [1, 2])
def test_look_ups_sum_to_the_entry(implementation, n_bits, out_bits, n_tables):
    domain, rng = Domain(n_bits, out_bits), np.random.default_rng(n_bits)
    n = 70 if n_bits < 10 else 6
    points = rng.integers(0, domain.size, n, np.uint32)
    indices = rng.integers(0, 2**32, n, np.uint32)
    top = 2**out_bits - 1
    tables = rng.integers(0, top, (n_tables, domain.size), domain.dtype, endpoint=True)
    seeds = seeds_of(rng, n)
    corrections = dpf.generate(points, *seeds, domain, TWEAK)
    shares = [
        look_up(p, seeds[p], corrections, indices, tables, domain, TWEAK, n_threads=1 + p)
        for p in (0, 1)
    ]
    expected = tables[:, (indices.astype(np.int64) - points) % domain.size]
    np.testing.assert_array_equal(shares[0] + shares[1], expected)


@given(
    st.sampled_from([*SMALL, (10, 16), (11, 64)]),
    st.sampled_from(CHOICES),
    st.integers(0, 40),
    st.integers(0, 2**32),
)
def test_native_results_are_numpys(form, choice, n, seed):
    n_payloads, payload_of = choice
    domain, rng = Domain(*form, n_payloads), np.random.default_rng(seed)
    points = rng.integers(0, domain.size, n, np.uint32)
    indices = rng.integers(0, domain.size, n, np.uint32)
    tables = values_of(rng, (len(payload_of), domain.size), domain)
    payloads = values_of(rng, (n_payloads, n), domain)
    seeds, tweak = seeds_of(rng, n), rng.bytes(16)
    results = []
    with pytest.MonkeyPatch.context() as patch:
        for kernel in IMPLEMENTATIONS.values():
            patch.setattr(native, "KERNEL", kernel)
            corrections = dpf.generate(points, *seeds, domain, tweak, payloads)
            result = [corrections]
            for party in (0, 1):
                key = (party, seeds[party], corrections)
                result.append(dpf.expand(*key, domain, tweak))
                result.append(look_up(*key, indices, tables, domain, tweak, payload_of=payload_of))
            results.append(result)
    for other in results[1:]:
        for mine, theirs in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(mine, theirs)


def test_a_known_answer():
    """Fixed inputs give fixed bytes: parties of different releases understand one another."""
    points, seeds = np.array([93], np.uint32), np.arange(32, dtype=np.uint8).reshape(2, 1, 16)
    corrections = dpf.generate(points, *seeds, Domain(7, 32), TWEAK)
    assert corrections.tobytes().hex() == KNOWN


def test_a_second_payload_leaves_the_first_as_it_was(implementation):
    """The tree is one, and the first payload's words are those of a key without a second."""
    points, seeds = np.array([93], np.uint32), np.arange(32, dtype=np.uint8).reshape(2, 1, 16)
    domain, payloads = Domain(7, 32, 2), np.array([[1], [77]], np.uint32)
    corrections = dpf.generate(points, *seeds, domain, TWEAK, payloads)
    assert corrections.tobytes().hex() == KNOWN + KNOWN_SECOND
    alone = dpf.expand(0, seeds[0], corrections[:, :96].copy(), Domain(7, 32), TWEAK)
    np.testing.assert_array_equal(dpf.expand(0, seeds[0], corrections, domain, TWEAK)[0], alone)


KNOWN = (
    "c96866c6461cd0b6c3a0f7c50eb40e0c6db3357749d812a06e359f101daa51e5"
    "c3def2735b4eca4e1231af2400cef3f37a805a190e096343998e3bac80c7328e"
    "13fd005537d0fb2ad6a8be20f99e9170ae0f2fe75dac14546a9cec504bde0888"
)
KNOWN_SECOND = "0e4fda0dd6c22f532698aa64610c59ae8a34b49e00c9b71781e6bf64a8871add"


def test_seeds_differ_in_a_bit_that_does_not_count(implementation):
    domain, rng = Domain(6, 32), np.random.default_rng(9)
    points, seeds = rng.integers(0, 64, 5, np.uint32), seeds_of(rng, 5)
    flipped = seeds.copy()
    flipped[:, :, 0] ^= 1
    first = dpf.generate(points, *seeds, domain, TWEAK)
    np.testing.assert_array_equal(first, dpf.generate(points, *flipped, domain, TWEAK))
    np.testing.assert_array_equal(
        dpf.expand(1, seeds[1], first, domain, TWEAK),
        dpf.expand(1, flipped[1], first, domain, TWEAK),
    )


def test_tweaks_separate_batches(implementation):
    domain, rng = Domain(6, 32), np.random.default_rng(10)
    points, seeds = rng.integers(0, 64, 5, np.uint32), seeds_of(rng, 5)
    first, second = (dpf.generate(points, *seeds, domain, bytes([i] * 16)) for i in (0, 1))
    assert (first != second).any(axis=1).all()


@pytest.mark.parametrize("party", [0, 1])
def test_one_party_sees_no_point_and_no_payload(party):
    """Byte and bit frequencies of what one party holds, for some keys: a smoke test only."""
    domain, rng, n = Domain(7, 32, 2), np.random.default_rng(11), 4000
    views = []
    for point, *payload in [(0, 0, 0), (93, 1, 2**32 - 1), (93, 5, 5), (127, 2**31, 1)]:
        seeds, points = seeds_of(rng, n), np.full(n, point, np.uint32)
        payloads = np.repeat(np.array(payload, np.uint32)[:, None], n, axis=1)
        corrections = dpf.generate(points, *seeds, domain, TWEAK, payloads)
        share = dpf.expand(party, seeds[party], corrections, domain, TWEAK)
        views.append(np.concatenate([corrections, *share.view(np.uint8)], axis=1))
        # Nor do the two payloads' masks have to do with each other.
        views.append(share[0].view(np.uint8) ^ share[1].view(np.uint8))
        views.append((share[0] - share[1]).view(np.uint8))
    for view in views:
        bits = np.unpackbits(view, axis=1).mean(axis=0)
        assert np.abs(bits - 0.5).max() < 6 * 0.5 / np.sqrt(n)
        counts = np.bincount(view.reshape(-1), minlength=256) / view.size
        assert np.abs(counts * 256 - 1).max() < 6 * np.sqrt(256 / view.size)


def test_what_a_correction_takes():
    sizes = {
        form: Domain(*form).correction_bytes
        for form in [(7, 32), (8, 32), (12, 64), (15, 32), (2, 16), (4, 16), (1, 64)]
    }
    assert sizes == {
        (7, 32): 96,
        (8, 32): 112,
        (12, 64): 192,
        (15, 32): 224,
        (2, 16): 16,
        (4, 16): 32,
        (1, 64): 16,
    }
    # A second payload: as many leaf blocks again, and no level more.
    for form in sizes:
        one, two = Domain(*form), Domain(*form, 2)
        assert (two.n_levels, two.n_blocks) == (one.n_levels, one.n_blocks)
        assert two.correction_bytes - one.correction_bytes == 16 * one.n_blocks
    # Two blocks to a leaf wherever two fit: no more bytes, and fewer hashes.
    assert (Domain(4, 16).n_levels, Domain(4, 16).n_blocks) == (0, 2)
    assert (Domain(3, 16).n_levels, Domain(3, 16).n_blocks) == (0, 1)


def test_arguments_that_do_not_fit_are_refused():
    domain, rng = Domain(7, 32), np.random.default_rng(12)
    points, seeds = np.array([1, 2], np.uint32), seeds_of(rng, 2)
    corrections = dpf.generate(points, *seeds, domain, TWEAK)
    tables = np.zeros((1, 128), np.uint32)
    good = (0, seeds[0], corrections, points, tables, domain, TWEAK)
    look_up(*good)
    for place, bad in [
        (0, 2),
        (1, seeds[0][:1]),
        (1, seeds[0].astype(np.int8)),
        (2, corrections[:, :-1]),
        (3, points.astype(np.int64)),
        (3, points[:1]),
        (4, tables.astype(np.uint64)),
        (4, tables[:, :64]),
        (4, np.zeros((0, 128), np.uint32)),
        (4, np.zeros((5, 128), np.uint32)),
        (5, Domain(7, 32, 2)),
        (6, b"short"),
    ]:
        with pytest.raises(UsageError):
            look_up(*good[:place], bad, *good[place + 1 :])
    with pytest.raises(UsageError):
        dpf.generate(points + np.uint32(127), *seeds, domain, TWEAK)
    with pytest.raises(UsageError):
        dpf.generate(points, seeds[0], seeds[1][:1], domain, TWEAK)
    with pytest.raises(UsageError):
        dpf.expand(0, seeds[0], corrections, Domain(8, 32), TWEAK)
    for payload_of in [[], [0, 0], [1], [-1]]:
        with pytest.raises(UsageError):
            look_up(*good, payload_of=payload_of)
    two = Domain(7, 32, 2)
    payloads = np.ones((2, 2), np.uint32)
    dpf.generate(points, *seeds, two, TWEAK, payloads)
    for wrong in [None, payloads[:1], payloads[:, :1], payloads[0], payloads.astype(np.uint64)]:
        with pytest.raises(UsageError):
            dpf.generate(points, *seeds, two, TWEAK, wrong)
    for form in [(0, 32), (25, 32), (7, 8), (7, 32, 0), (7, 32, 3)]:
        with pytest.raises(UsageError):
            Domain(*form)


@given(
    st.sampled_from(
        [(6, 32), (6, 64), (7, 16), (8, 16), (7, 32), (5, 64), (8, 32), (4, 16), (10, 64)]
    ),
    st.integers(0, 75),
    st.sampled_from([(np.uint16, 3), (np.uint32, 7), (np.uint64, 20), (np.uint16, 0)]),
    st.booleans(),
    st.booleans(),
    st.integers(0, 2**32),
)
def test_lines_are_their_look_ups(form, n, opening, guarded, narrow, seed):
    domain, rng = Domain(*form, 2), np.random.default_rng(seed)
    dtype, low_bits = opening
    points = rng.integers(0, domain.size, n, np.uint32)
    opened = rng.integers(0, np.iinfo(dtype).max, n, dtype, endpoint=True)
    values, slopes = values_of(rng, (2, domain.size), domain)
    if narrow:  # between the ends of what fits in 16 bits, and they
        slopes = rng.integers(-(2**15), 2**15, domain.size).astype(domain.dtype)
        slopes[:2] = np.array([2**15 - 1, -(2**15)]).astype(domain.dtype)
    guard = rng.integers(0, 2, domain.size).astype(domain.dtype)
    mask_low = rng.integers(0, 2**low_bits, n).astype(domain.dtype)
    payloads, tweak = np.stack([np.ones_like(mask_low), mask_low]), rng.bytes(16)
    seeds = seeds_of(rng, n)
    corrections = dpf.generate(points, *seeds, domain, tweak, payloads)
    tables = [values, slopes, slopes, guard] if guarded else [values, slopes, slopes]
    rows = dpf.unroll(np.stack(tables), domain, (0, 0, 1, 0)[: len(tables)])
    results = []
    with pytest.MonkeyPatch.context() as patch:
        for kernel in IMPLEMENTATIONS.values():
            patch.setattr(native, "KERNEL", kernel)
            results.append(
                [
                    dpf.interpolate(
                        p, seeds[p], corrections, opened, rows, low_bits, tweak, n_threads=1 + p
                    )
                    for p in (0, 1)
                ]
            )
    for other in results[1:]:
        for (mine, my_count), (theirs, their_count) in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(mine, theirs)
            assert my_count == their_count
    (first, first_count), (second, second_count) = results[0]
    entry = ((opened >> low_bits).astype(np.int64) - points) % domain.size
    low = (opened & dtype(2**low_bits - 1)).astype(domain.dtype)
    np.testing.assert_array_equal(first + second, values[entry] + (low - mask_low) * slopes[entry])
    n_flagged = int(guard[entry].sum()) if guarded else 0
    assert (first_count + second_count - n_flagged) % 2**domain.out_bits == 0
