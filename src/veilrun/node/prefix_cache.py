"""Keys and values of past prompts and answers, for prompts that begin alike under the same salt.

A cache is found again by salt and then by ids: the longest common beginning of at least
`MIN_SHARED_TOKENS` counts. What is handed out is a copy cut to that length.

Covered: requests of different salts, and requests without a salt, never read what another wrote,
so the time to an answer's first token says nothing of prompts under other salts.

Not covered: who shares a salt can tell by that time whether a prompt began like theirs. All
salts share `max_bytes`, so someone whose entry is gone learns that the node was busy.

Invariant: the kept caches take at most `max_bytes`; the least recently used goes first. Used by
one thread.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import transformers
from transformers.cache_utils import DynamicLayer

from veilrun.errors import UsageError

MIN_SHARED_TOKENS: Final = 16
"""A shorter beginning (a template's first words) saves too little."""


_Key = tuple[str, tuple[int, ...]]
"""Salt, and the ids whose keys and values are kept."""


@dataclass(frozen=True, slots=True, eq=False)
class _Entry:
    """cache: as many positions as its key has ids."""

    cache: Any
    n_bytes: int


class PrefixCache:
    """config: the model's text configuration.

    n_bytes: of all that is kept. n_hits, n_misses: of `take`. For tests and metrics.
    """

    def __init__(self, config: Any, max_bytes: int) -> None:
        """Empty.

        Raises:
            UsageError: the model remembers in another way than keys and values of all tokens.
        """
        self._config = config
        self._max_bytes = max_bytes
        self._entries: OrderedDict[_Key, _Entry] = OrderedDict()  # the last one used is last
        self._keys: dict[str, list[_Key]] = {}  # by salt
        self.n_bytes = 0
        self.n_hits = 0
        self.n_misses = 0
        kinds = {type(layer) for layer in self._empty().layers}
        if kinds != {DynamicLayer}:
            names = ", ".join(sorted(kind.__name__ for kind in kinds - {DynamicLayer})) or "none"
            raise UsageError(
                "a prefix cache needs full attention in every layer; this model's layers are kept "
                f"as {names}"
            )

    def take(self, salt: str, prompt_ids: Sequence[int]) -> Any:
        """A cache to go on from: filled with the prompt's beginning, if it is known, or empty."""
        found = [(_n_shared(key[1], prompt_ids), key) for key in self._keys.get(salt, ())]
        n_shared, key = max(found, default=(0, None), key=lambda one: one[0])
        n_shared = min(n_shared, len(prompt_ids) - 1)  # the last token's scores are still to come
        if key is None or n_shared < MIN_SHARED_TOKENS:
            self.n_misses += 1
            return self._empty()
        self.n_hits += 1
        self._entries.move_to_end(key)
        cache = self._empty()
        for index, layer in enumerate(self._entries[key].cache.layers):
            cache.update(layer.keys[..., :n_shared, :], layer.values[..., :n_shared, :], index)
        return cache

    def keep(self, salt: str, token_ids: Sequence[int], cache: Any) -> None:
        """Remember a cache from `take` that has grown; its positions are those of `token_ids`."""
        ids = tuple(token_ids[: cache.get_seq_length()])
        if len(ids) < MIN_SHARED_TOKENS:
            return
        for key in tuple(self._keys.get(salt, ())):
            n_shared = _n_shared(key[1], ids)
            if n_shared == len(ids):  # it holds this one
                self._entries.move_to_end(key)
                return
            if n_shared == len(key[1]):  # this one holds it
                self._drop(key)
        n_bytes = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
        if n_bytes > self._max_bytes:
            return
        while self.n_bytes + n_bytes > self._max_bytes:
            self._drop(next(iter(self._entries)))
        self._entries[salt, ids] = _Entry(cache, n_bytes)
        self._keys.setdefault(salt, []).append((salt, ids))
        self.n_bytes += n_bytes

    def _drop(self, key: _Key) -> None:
        self.n_bytes -= self._entries.pop(key).n_bytes
        keys = self._keys[key[0]]
        keys.remove(key)
        if not keys:
            del self._keys[key[0]]

    def _empty(self) -> Any:
        return transformers.DynamicCache(config=self._config)


def _n_shared(left: Sequence[int], right: Sequence[int]) -> int:
    """The length of the longest common beginning."""
    for index, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return index
    return min(len(left), len(right))
