"""The identity of a model's weights: a Merkle root over its tensors, whatever the sharding.

leaf = SHA-256(0x00 | len(label) | label | SHA-256(data)), label = JSON [name, dtype, shape];
node = SHA-256(0x01 | left | right); leaves sorted by name; an odd last node moves up
unchanged (the tree of RFC 6962, section 2.1). The prefixes keep a leaf from passing for a
node.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

from veilrun.checkpoint.folder import Checkpoint
from veilrun.checkpoint.format import TensorInfo

_CHUNK_BYTES = 1 << 22


def leaf(info: TensorInfo, data_digest: bytes) -> bytes:
    """The leaf of one tensor: its name, dtype and shape bound to the digest of its bytes."""
    label = json.dumps([info.name, info.dtype, info.shape], separators=(",", ":")).encode()
    body = b"\x00" + len(label).to_bytes(4, "little") + label + data_digest
    return hashlib.sha256(body).digest()


def root(leaves: Mapping[str, bytes]) -> bytes:
    """32 bytes: the root over leaves keyed by tensor name."""
    level = [leaves[name] for name in sorted(leaves)]
    if not level:
        return hashlib.sha256(b"").digest()
    while len(level) > 1:
        pairs = [
            hashlib.sha256(b"\x01" + left + right).digest()
            for left, right in zip(level[::2], level[1::2], strict=False)
        ]
        level = pairs + level[len(pairs) * 2 :]
    return level[0]


def weights_root(
    checkpoint: Checkpoint, on_bytes: Callable[[int], None] = lambda n_bytes: None
) -> bytes:
    """32 bytes: the root of all tensors, read once by as many threads as there are cores.

    on_bytes: told the size of each tensor when it is done.
    """

    def one(name: str) -> tuple[str, bytes]:
        info, digest = checkpoint[name], hashlib.sha256()
        for start in range(0, info.n_bytes, _CHUNK_BYTES):
            stop = min(start + _CHUNK_BYTES, info.n_bytes)
            digest.update(checkpoint.read_range(name, start, stop))
        on_bytes(info.n_bytes)
        return name, leaf(info, digest.digest())

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return root(dict(pool.map(one, checkpoint)))
