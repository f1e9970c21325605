"""A recorded network: what to do before and after each frame, for any inference of its length.

Invariant: the steps, their places and the sizes of frames follow from shapes alone. Where in its
operands a step reads may depend on what was opened, which is masked.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from typing import Final, final

import numpy as np
import numpy.typing as npt

from veilrun.errors import DecodeError
from veilrun.mpc import dpf, native
from veilrun.mpc.arithmetic import Keys, check_length
from veilrun.mpc.dpf import Domain
from veilrun.mpc.plan import Shape
from veilrun.mpc.shares import Array, dtype_of, signed
from veilrun.transport.rounds import Protocol, Round

Memory = npt.NDArray[np.uint8]

NOBODY: Final[frozenset[str]] = frozenset()


@dataclass(frozen=True, slots=True)
class Turn:
    """What is done between two rounds, and the frame after it. Spans are (start, n_bytes).

    end: of its steps. received: where the frame before goes. sent: the frame that it leaves.
    awaited: whose frames come then, as of a `Round`; nobody's and none sent: it is the last.
    """

    end: int
    received: tuple[int, int] | None
    sent: tuple[int, int] | None
    awaited: Set[str] | None


@dataclass(frozen=True, slots=True)
class Result:
    """A revealed value: where it lies, in elements of `item` bytes, and its ring."""

    start: int
    shape: Shape
    item: int
    bits: int


@final
@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Tape:
    """n_threads: for products and look-ups. n_bytes: of the memory. correlations, entries,
    aes_keys: where they go in it. results: what is revealed to this party. flags: tables with
    guards, and their counts' rings. fixed: what steps point at, kept alive.
    """

    kernel: native.Kernel
    n_threads: int
    peer: str
    steps: bytes
    turns: tuple[Turn, ...]
    n_bytes: int
    correlations: tuple[tuple[int, ...], ...]
    entries: tuple[int, ...]
    aes_keys: Mapping[Domain, int]
    results: tuple[Result, ...] | None
    flags: tuple[tuple[str, int], ...]
    fixed: object

    def load(self, correlations: Iterable[Array | Keys], tweak: bytes) -> Loaded:
        """The material of one inference, in its places.

        Raises:
            DecodeError: from `material.halves`.
        """
        memory = native.passing(self.n_bytes)
        for places, one in zip(self.correlations, correlations, strict=True):
            parts = one if isinstance(one, tuple) else (one,)
            for start, part in zip(places, parts, strict=True):
                _put(memory, start, part)
        for domain, start in self.aes_keys.items():
            _put(memory, start, np.frombuffer(dpf.aes_keys_of(tweak, domain).data, np.uint8))
        return Loaded(self, memory)


@final
class Loaded:
    """One inference of a tape, to be run once."""

    def __init__(self, tape: Tape, memory: Memory) -> None:
        self._tape = tape
        self._memory = memory
        self._is_used = False

    def __repr__(self) -> str:
        return "Loaded(secret)"

    def run(self, *entries: Array) -> Protocol[tuple[Array, ...] | None]:
        """The party's rounds. entries: its shares. Returns what it is told, as signed int64.

        Raises:
            DecodeError: a frame is not what the peer sends there.
        """
        if self._is_used:
            raise AssertionError("material is for one run")
        self._is_used = True
        tape, memory = self._tape, self._memory
        steps = np.frombuffer(tape.steps, np.uint8)
        at = native.address(memory), native.address(steps)
        for start, entry in zip(tape.entries, entries, strict=True):
            _put(memory, start, entry)
        frame, first = b"", 0
        for turn in tape.turns:
            start, n_bytes = turn.received or (0, 0)
            check_length(frame, n_bytes)
            memory[start : start + n_bytes] = np.frombuffer(frame, np.uint8)
            if not tape.kernel.library.veilrun_run(*at, first, turn.end, tape.n_threads):
                raise DecodeError("the padding of packed values is not zero")
            first = turn.end
            if turn.sent is None and turn.awaited == NOBODY:
                break
            outgoing = {} if turn.sent is None else {tape.peer: _bytes(memory, turn.sent)}
            inbox = yield Round(outgoing, turn.awaited)
            frame = inbox.get(tape.peer, b"")
        return None if tape.results is None else tuple(map(self._read, tape.results))

    def _read(self, result: Result) -> Array:
        end = result.start + math.prod(result.shape) * result.item
        words = self._memory[result.start : end].view(dtype_of(8 * result.item))
        return signed(words.reshape(result.shape), result.bits)


def _put(memory: Memory, start: int, array: Array) -> None:
    raw = native.contiguous(array).reshape(-1).view(np.uint8)
    memory[start : start + raw.size] = raw


def _bytes(memory: Memory, span: tuple[int, int]) -> bytes:
    start, n_bytes = span
    return memory[start : start + n_bytes].tobytes()
