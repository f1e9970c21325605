"""What `dpf` does, in numpy and the AES of `cryptography`, for machines without the kernel.

Trees grow level by level over many keys at once. A node is two little-endian words, (lo, hi), in
the last axis.

Invariant: the arguments are checked, in `dpf`; the results are the kernel's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

if TYPE_CHECKING:
    from veilrun.mpc.dpf import Domain

Array = npt.NDArray[Any]

_WORD = np.dtype("<u8")
_VALUES_AT_ONCE = 2**20


class _Hash:
    """H_c: AES with a fixed key over a linear map of the node, which is then added."""

    def __init__(self, aes_key: bytes) -> None:
        # One block per node under a public key: a permutation, not an encryption of anything.
        cipher = Cipher(algorithms.AES(aes_key), modes.ECB())  # noqa: S305
        self._encryptor = cipher.encryptor()

    def __call__(self, nodes: Array) -> Array:
        mapped = np.empty(nodes.shape, _WORD)
        mapped[..., 0] = nodes[..., 1]
        mapped[..., 1] = nodes[..., 0] ^ nodes[..., 1]
        image = np.frombuffer(self._encryptor.update(mapped.tobytes()), _WORD)
        return image.reshape(nodes.shape) ^ mapped


def _hashes(aes_keys: bytes) -> tuple[_Hash, list[_Hash]]:
    """H_0, and those of the leaf blocks."""
    hashes = [_Hash(aes_keys[at : at + 16]) for at in range(0, len(aes_keys), 16)]
    return hashes[0], hashes[1:]


def _words(data: Array) -> Array:
    """uint8 [N, 16 * k] as nodes [N, k, 2]."""
    return np.ascontiguousarray(data).view(_WORD).reshape(len(data), data.shape[1] // 16, 2)


def _roots(seeds: Array, party: int) -> Array:
    """[N, 1, 2]; the lowest bit says whose they are."""
    nodes = _words(seeds).copy()
    nodes[..., 0] = nodes[..., 0] & ~np.uint64(1) | np.uint64(party)
    return nodes


def _controlled(nodes: Array, words: Array) -> Array:
    """`words` where the node's control bit is set, else zero."""
    return (nodes[..., :1] & np.uint64(1)) * words


def _leaf_lanes(hashes: list[_Hash], leaves: Array, domain: Domain) -> Array:
    """C(x) of each payload for nodes [..., 2]: [n_payloads, ..., lanes]."""
    m = domain.n_blocks
    payloads = [hashes[at : at + m] for at in range(0, len(hashes), m)]
    blocks = np.stack([np.concatenate([one(leaves) for one in p], axis=-1) for p in payloads])
    return blocks.view(domain.dtype.newbyteorder("<")).astype(domain.dtype, copy=False)


def expand(party: int, seeds: Array, corrections: Array, domain: Domain, aes_keys: bytes) -> Array:
    """This party's shares of payload times unit vector, [n_payloads, N, 2^n_bits]."""
    out = np.empty((domain.n_payloads, len(seeds), domain.size), domain.dtype)
    step = max(1, _VALUES_AT_ONCE // domain.size)
    for first in range(0, len(seeds), step):
        part = slice(first, first + step)
        out[:, part] = _expand_part(party, seeds[part], corrections[part], domain, aes_keys)
    return out


def _expand_part(
    party: int, seeds: Array, corrections: Array, domain: Domain, aes_keys: bytes
) -> Array:
    tree, leaf = _hashes(aes_keys)
    nodes, words = _roots(seeds, party), _words(corrections)
    for level in range(domain.n_levels):
        left = tree(nodes) ^ _controlled(nodes, words[:, level : level + 1])
        children = np.stack([left, left ^ nodes], axis=2)
        nodes = children.reshape(len(seeds), -1, 2)
    lane = domain.dtype.newbyteorder("<")
    last = words[:, domain.n_levels :].reshape(len(seeds), domain.n_payloads, 1, -1).swapaxes(0, 1)
    last = np.ascontiguousarray(last).view(lane).astype(domain.dtype, copy=False)
    control = (nodes[..., :1] & np.uint64(1)).astype(domain.dtype)
    share: Array = _leaf_lanes(leaf, nodes, domain) + control * last
    share = share.reshape(domain.n_payloads, len(seeds), -1)[..., : domain.size]
    if party:
        np.negative(share, out=share)
    return share


def lookup(
    party: int,
    seeds: Array,
    corrections: Array,
    indices: Array,
    windows: Array,
    payload_of: Array,
    domain: Domain,
    aes_keys: bytes,
) -> Array:
    """Inner products of the expansions with rotated tables, [T, N].

    windows: [T, >= 2 * size]; for index i lane j meets windows[t, (-i mod size) + j].
    payload_of: each table's.
    """
    out = np.empty((len(windows), len(seeds)), domain.dtype)
    starts = (-indices.astype(np.int64)) % domain.size
    rotations = np.lib.stride_tricks.sliding_window_view(windows, domain.size, axis=1)
    step = max(1, _VALUES_AT_ONCE // domain.size)
    for first in range(0, len(seeds), step):
        part = slice(first, first + step)
        share = _expand_part(party, seeds[part], corrections[part], domain, aes_keys)
        for table, (rotated, payload) in enumerate(zip(rotations, payload_of, strict=True)):
            products = share[payload] * rotated[starts[part]]
            out[table, part] = products.sum(axis=1, dtype=domain.dtype)
    return out


def generate(
    points: Array, seeds0: Array, seeds1: Array, payloads: Array, domain: Domain, aes_keys: bytes
) -> Array:
    """The corrections, uint8 [N, correction_bytes]."""
    tree, leaf = _hashes(aes_keys)
    # [2, N, 2]: each party's node on the path to the point.
    nodes = np.stack([_roots(seeds0, 0)[:, 0], _roots(seeds1, 1)[:, 0]])
    delta = nodes[0] ^ nodes[1]
    columns = []
    for level in range(domain.n_levels):
        bit = (points[:, None] >> np.uint32(domain.n_bits - 1 - level)) & np.uint32(1)
        hashed = tree(nodes)
        word = hashed[0] ^ hashed[1] ^ np.where(bit, 0, delta)
        left = hashed ^ _controlled(nodes, word)
        nodes = np.where(bit, left ^ nodes, left)
        columns.append(word)
    # [n_payloads, 2, N, lanes]
    lanes = _leaf_lanes(leaf, nodes, domain)
    wanted = np.zeros((len(payloads), *lanes.shape[2:]), domain.dtype)
    wanted[:, np.arange(len(points)), points % np.uint32(lanes.shape[-1])] = payloads
    last = wanted - lanes[:, 0] + lanes[:, 1]
    negative = (nodes[1, :, :1] & np.uint64(1)).astype(bool)
    last = np.where(negative, -last, last).astype(domain.dtype.newbyteorder("<"))
    parts = [np.ascontiguousarray(one).view(np.uint8) for one in (*columns, *last)]
    return np.concatenate(parts, axis=1)
