"""Distributed point functions: two short keys whose expansions add up to a scaled unit vector.

A dealer knows a point p and one or two payloads beta, and gives each of two parties a seed, and
both the same correction. For each payload a party expands its key to 2^n values that look random
to it; the two expansions sum to beta at p and to 0 elsewhere, mod 2^out_bits. So the inner product
of an expansion with a rotated public table is a share of beta times one of its entries, and no
party learns which (`lookup`), nor beta.

Construction: the half-tree of Guo et al. 2022 (eprint 2022/1431), ended early, for a semi-honest
dealer. The hash is H_c(x) = AES_{k_c}(s(x)) ^ s(x) with s(hi||lo) = (hi^lo)||hi, which is linear
and has no fixed differences (Guo et al. 2020); lo is the first eight bytes, and words are
little-endian. k_0 is for the tree, k_1..k_m for the blocks of a leaf and k_{m+1}..k_{2m} for those
of a second payload, all made from a public tweak: use a new one for each inference.

- A node is 16 bytes; its lowest bit is its control bit t. The roots are the seeds, with lowest
  bit b for party b, and differ by D.
- Level i with word CW_i: left = H_0(x) ^ t CW_i, right = left ^ x. With a the i-th highest bit of
  p, CW_i = H_0(x_0) ^ H_0(x_1) ^ (1 - a) D for the parties' nodes x_0, x_1 on the path to p.
  On the path the nodes differ by D: there left_0 ^ left_1 = (1 - a) D and right_0 ^ right_1 = a D,
  so the child on the path differs by D again and the other one does not differ at all. Off the
  path equal nodes have equal children.
- A leaf is q = n - log2(lanes) levels down and C(x) = H_1(x)||..||H_m(x), read as lanes of
  out_bits. Party b's share is (-1)^b (C(x) + t W). Equal leaves cancel; on the path t_0 - t_1 is
  1 or -1, so W = (-1)^{t_1} (beta e - C(x_0) + C(x_1)) makes the sum beta e, e the unit vector of
  p's lane. A second payload has its own C and W on the same tree.

A correction is CW_1..CW_q, W, and W of the second payload. Invariant: no randomness is drawn here,
and results are the same to the last bit with and without the native kernel.
"""

from __future__ import annotations

import ctypes
import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from veilrun.errors import UsageError
from veilrun.mpc import dpf_fallback, native
from veilrun.mpc.dpf_rows import Rows as Rows

Array = npt.NDArray[Any]

_LANES: dict[int, np.dtype[Any]] = {
    16: np.dtype(np.uint16),
    32: np.dtype(np.uint32),
    64: np.dtype(np.uint64),
}
_MAX_N_BITS = 24
_MAX_PAYLOADS = 2
_MAX_TABLES = 4
_TABLE_MARGIN_BYTES = 64
_MAX_LINES_BYTES = 1 << 13
_U8, _U32 = np.dtype(np.uint8), np.dtype(np.uint32)
_OPENED = frozenset(_LANES.values())
# `dpf_batch` and `dpf_lines` of `kernel.h`.
_BATCH, _LINES = struct.Struct("@IiiiiiiqPPP"), struct.Struct("@iiiPPPP")


@dataclass(frozen=True, slots=True)
class Domain:
    """What the keys expand to: for each payload 2^n_bits values mod 2^out_bits.

    n_bits: 1 to 24. out_bits: 16, 32 or 64. n_payloads: 1 or 2.
    size: the number of values. dtype: theirs, uint16, uint32 or uint64.
    n_blocks: m, hash blocks per leaf and payload; two take as many bytes as one, and fewer hashes.
    n_levels: q, levels above the leaves; 0 where one leaf holds all values.
    correction_bytes: how long one key's correction is.
    """

    n_bits: int
    out_bits: int
    n_payloads: int = 1
    size: int = field(init=False, repr=False, compare=False)
    dtype: np.dtype[Any] = field(init=False, repr=False, compare=False)
    n_blocks: int = field(init=False, repr=False, compare=False)
    n_levels: int = field(init=False, repr=False, compare=False)
    correction_bytes: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 1 <= self.n_bits <= _MAX_N_BITS or self.out_bits not in _LANES:
            raise UsageError(
                f"no point functions of 2^{self.n_bits} values of {self.out_bits} bits"
            )
        if not 1 <= self.n_payloads <= _MAX_PAYLOADS:
            raise UsageError(f"no point functions with {self.n_payloads} payloads")
        all_bits = self.out_bits << self.n_bits
        n_blocks = 2 if all_bits >= 256 else 1
        n_levels = max(all_bits // (128 * n_blocks), 1).bit_length() - 1
        for name, value in (
            ("size", 1 << self.n_bits),
            ("dtype", _LANES[self.out_bits]),
            ("n_blocks", n_blocks),
            ("n_levels", n_levels),
            ("correction_bytes", 16 * (n_levels + n_blocks * self.n_payloads)),
        ):
            object.__setattr__(self, name, value)  # follows from the rest, and is read often


def generate(
    points: Array,
    seeds0: Array,
    seeds1: Array,
    domain: Domain,
    tweak: bytes,
    payloads: Array | None = None,
) -> Array:
    """The corrections of a batch of keys, as the dealer makes them.

    points: uint32 [N], each below 2^n_bits. seeds0, seeds1: uint8 [N, 16], independent and
    uniform; their lowest bits do not count. tweak: 16 public bytes, new for each inference.
    payloads: [n_payloads, N] of the domain's dtype; one payload is 1 where none is given.
    Returns uint8 [N, correction_bytes].

    Raises:
        UsageError: shapes or dtypes that do not fit, a point beyond the domain, or a domain of
            two payloads and none given.
    """
    n = len(points)
    _check("points", points, _U32, (n,))
    _check("seeds0", seeds0, _U8, (n, 16))
    _check("seeds1", seeds1, _U8, (n, 16))
    if n and int(points.max()) >= domain.size:
        raise UsageError(f"point {int(points.max())} is beyond 2^{domain.n_bits} values")
    if payloads is None:
        payloads = np.ones((1, n), domain.dtype)
    _check("payloads", payloads, domain.dtype, (domain.n_payloads, n))
    aes_keys = aes_keys_of(tweak, domain)
    kernel = _aes_kernel()
    if kernel is None:
        return dpf_fallback.generate(points, seeds0, seeds1, payloads, domain, aes_keys.data)
    out = np.empty((n, domain.correction_bytes), np.uint8)
    batch = _Batch(kernel, 0, seeds0, out, domain, aes_keys)
    others = [native.contiguous(one) for one in (points, seeds1, payloads)]
    kernel.call("dpf_generate", batch.part(0, n), *others, out)
    return out


def unroll(tables: Array, domain: Domain, payload_of: Sequence[int] | None = None) -> Rows:
    """Make tables ready.

    tables: [T, 2^n_bits] of the domain's dtype, T from 1 to 4. payload_of: for each table which
    payload it is multiplied with; the first, where not given.

    Raises:
        UsageError: shapes or dtypes that do not fit, or a payload that the keys do not have.
    """
    n = len(tables)
    _check("tables", tables, domain.dtype, (n, domain.size))
    if not 1 <= n <= _MAX_TABLES:
        raise UsageError(f"a look-up takes 1 to {_MAX_TABLES} tables, not {n}")
    wanted = [0] * n if payload_of is None else list(payload_of)
    if len(wanted) != n or any(not 0 <= one < domain.n_payloads for one in wanted):
        raise UsageError(f"payloads {wanted}: {n} tables, {domain.n_payloads} payloads")
    margin = _TABLE_MARGIN_BYTES // domain.dtype.itemsize
    backwards = np.roll(tables[:, ::-1], 1, axis=1)
    windows = np.concatenate([backwards, backwards, np.zeros((n, margin), domain.dtype)], axis=1)
    return Rows(windows, np.array(wanted, np.int32), domain)


def lookup(
    party: int,
    seeds: Array,
    corrections: Array,
    indices: Array,
    rows: Rows,
    domain: Domain,
    tweak: bytes,
    *,
    n_threads: int = 1,
) -> Array:
    """Shares of beta tables[t, (indices[e] - p_e) mod 2^n_bits], p_e and beta those of key e.

    party: 0 or 1. seeds: uint8 [N, 16]. corrections: uint8 [N, correction_bytes]. indices: uint32
    [N], taken mod 2^n_bits. rows: of T tables, from `unroll`. tweak: as the dealer had it.
    n_threads: each takes a part of the keys. Returns [T, N]; the two parties' results sum to the
    products mod 2^out_bits.

    Raises:
        UsageError: shapes or dtypes that do not fit.
    """
    n = len(seeds)
    _check_key(party, seeds, corrections, domain)
    _check("indices", indices, _U32, (n,))
    if rows.domain is not domain and rows.domain != domain:
        raise UsageError(f"rows for {rows.domain} and keys of {domain}")
    windows = rows.windows
    aes_keys = aes_keys_of(tweak, domain)
    kernel = _aes_kernel()
    if kernel is None:
        return dpf_fallback.lookup(
            party, seeds, corrections, indices, windows, rows.payload_of, domain, aes_keys.data
        )
    n_tables, stride = windows.shape
    out = np.empty((n_tables, n), domain.dtype)
    batch = _Batch(kernel, party, seeds, corrections, domain, aes_keys)
    indices = native.contiguous(indices)
    at, to, item = native.address(indices), native.address(out), domain.dtype.itemsize
    tables, chosen = rows.addresses

    def run(first: int, end: int) -> None:
        _keep, scratch = kernel.dpf_scratch(domain.n_levels)
        kernel.library.veilrun_dpf_lookup(
            batch.part(first, end), at + 4 * first, tables, n_tables, chosen, stride, n, scratch,
            to + item * first,
        )  # fmt: skip

    native.spread(run, n, n_threads, unit=32)
    return out


def interpolate(
    party: int,
    seeds: Array,
    corrections: Array,
    opened: Array,
    rows: Rows,
    low_bits: int,
    tweak: bytes,
    *,
    n_threads: int = 1,
) -> tuple[Array, int]:
    """Shares of a straight line per key, and of how many of them the guard marks.

    With i the upper bits of opened[e], mod 2^n_bits, and low its low_bits lower ones, the shares
    are of (beta values + low beta slopes - beta' slopes)[(i - p_e) mod 2^n_bits], and of the sum
    over e of beta guard[(i - p_e) mod 2^n_bits], mod 2^out_bits.

    opened: [N] of uint16, uint32 or uint64. rows: of values, slopes, slopes for the second payload
    and, if there is one, a guard of 0 and 1 (else the sum is 0). The others as in `lookup`.

    Raises:
        UsageError: shapes, dtypes or rows that do not fit.
    """
    n, domain = len(seeds), rows.domain
    _check_key(party, seeds, corrections, domain)
    if opened.dtype not in _OPENED or opened.shape != (n,) or not rows.of_lines:
        raise UsageError(f"no lines by {opened.dtype} {list(opened.shape)} for {n} keys")
    if not 0 <= low_bits < 8 * opened.itemsize:
        raise UsageError(f"{low_bits} low bits of {opened.dtype}")
    kernel = _aes_kernel()
    if kernel is None or not has_lines(kernel, domain):
        key = party, seeds, corrections
        return _interpolate(*key, opened, rows, low_bits, tweak, n_threads=n_threads)
    out = np.empty(n, domain.dtype)
    batch = _Batch(kernel, party, seeds, corrections, domain, aes_keys_of(tweak, domain))
    opened = native.contiguous(opened)
    at, to = native.address(opened), native.address(out)
    in_item, out_item = opened.itemsize, out.itemsize
    narrow, tables = rows.quarters.are_narrow, rows.quarters.addresses
    flagged = []

    def run(first: int, end: int) -> None:
        _keep, scratch = kernel.dpf_scratch(domain.n_levels)
        lines = _LINES.pack(in_item, low_bits, narrow, at + in_item * first, *tables)
        flagged.append(
            kernel.library.veilrun_dpf_lines(
                batch.part(first, end), lines, scratch, to + out_item * first
            )
        )

    native.spread(run, n, n_threads, unit=32)
    return out, sum(flagged) & (1 << domain.out_bits) - 1


def _interpolate(
    party: int,
    seeds: Array,
    corrections: Array,
    opened: Array,
    rows: Rows,
    low_bits: int,
    tweak: bytes,
    *,
    n_threads: int,
) -> tuple[Array, int]:
    """`interpolate`, by a look-up of each of the rows."""
    word = opened.dtype.type
    indices = (opened >> word(low_bits)).astype(np.uint32)
    low = (opened & word((1 << low_bits) - 1)).astype(rows.domain.dtype)
    key = party, seeds, corrections
    found = lookup(*key, indices, rows, rows.domain, tweak, n_threads=n_threads)
    n_flagged = int(found[3].sum(dtype=found.dtype)) if len(found) == 4 else 0
    values: Array = found[0] + low * found[1] - found[2]
    return values, n_flagged


def has_lines(kernel: native.Kernel, domain: Domain) -> bool:
    """Whether the kernel has lines for keys that are this small."""
    n_bytes = domain.size * domain.dtype.itemsize
    return kernel.has_lines and domain.n_levels >= 3 and n_bytes <= _MAX_LINES_BYTES


def expand(party: int, seeds: Array, corrections: Array, domain: Domain, tweak: bytes) -> Array:
    """This party's share of each key's unit vector, times its payload.

    Arguments as in `lookup`. Returns [N, 2^n_bits] of the domain's dtype, or [2, N, 2^n_bits]
    where the domain has two payloads.

    Raises:
        UsageError: shapes or dtypes that do not fit.
    """
    _check_key(party, seeds, corrections, domain)
    aes_keys = aes_keys_of(tweak, domain)
    kernel = _aes_kernel()
    if kernel is None:
        out = dpf_fallback.expand(party, seeds, corrections, domain, aes_keys.data)
    else:
        n = len(seeds)
        out = np.empty((domain.n_payloads, n, domain.size), domain.dtype)
        batch = _Batch(kernel, party, seeds, corrections, domain, aes_keys)
        _keep, scratch = kernel.dpf_scratch(domain.n_levels)
        kernel.call("dpf_expand", batch.part(0, n), scratch, out)
    return out if domain.n_payloads > 1 else out[0]


def _aes_kernel() -> native.Kernel | None:
    kernel = native.KERNEL
    return kernel if kernel is not None and kernel.has_aes else None


class AesKeys(NamedTuple):
    """k_0 and those of the leaf blocks, 16 bytes each; and where they lie."""

    data: bytes
    address: int


@lru_cache(maxsize=64)
def aes_keys_of(tweak: bytes, domain: Domain) -> AesKeys:
    """Those of an inference, by its tweak."""
    if len(tweak) != 16:
        raise UsageError(f"a tweak has 16 bytes, not {len(tweak)}")
    digests = (
        hashlib.sha256(b"veilrun dpf" + tweak + bytes([block])).digest()
        for block in range(1 + domain.n_blocks * domain.n_payloads)
    )
    data = b"".join(digest[:16] for digest in digests)
    return AesKeys(data, ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p).value or 0)


class _Batch:
    """Keys as the kernel takes them; holds the arrays that the structures point into."""

    def __init__(
        self,
        kernel: native.Kernel,
        party: int,
        seeds: Array,
        corrections: Array,
        domain: Domain,
        aes_keys: AesKeys,
    ) -> None:
        self._domain = domain
        self._fixed = (
            kernel.features,
            party,
            domain.n_bits,
            domain.out_bits,
            domain.n_levels,
            domain.n_blocks,
            domain.n_payloads,
        )
        self._aes_keys = aes_keys
        self._seeds = native.contiguous(seeds)
        self._corrections = native.contiguous(corrections)
        self._starts = native.address(self._seeds), native.address(self._corrections)

    def part(self, first: int, end: int) -> bytes:
        """Keys first to end: a `dpf_batch` of `kernel.h`."""
        seeds, corrections = self._starts
        return _BATCH.pack(
            *self._fixed,
            end - first,
            self._aes_keys.address,
            seeds + 16 * first,
            corrections + self._domain.correction_bytes * first,
        )


def _check_key(party: int, seeds: Array, corrections: Array, domain: Domain) -> None:
    if party not in (0, 1):
        raise UsageError(f"party must be 0 or 1, is {party}")
    n = len(seeds)
    _check("seeds", seeds, _U8, (n, 16))
    _check("corrections", corrections, _U8, (n, domain.correction_bytes))


def _check(name: str, array: Array, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    if array.dtype != dtype or array.shape != shape:
        raise UsageError(
            f"{name} must be {dtype} {list(shape)}, is {array.dtype} {list(array.shape)}"
        )
