"""Rows of a secret embedding table for secret tokens: two-server private retrieval. One question,
one answer.

The dealer gives P2, once, the table E + M, with M = PRF(k_01), which P1 can draw row by row.

    P1 -> P0, P2   for each token t, the two keys of a point function at t
    P0 -> P1       a_0 + r,  a_0 = sum_j u_0[j] (E + M)[j],  r = PRF(k_02)
    P1 holds       a_0 + r - M[t]
    P2 holds       a_2 - r,  a_2 = sum_j u_1[j] (E + M)[j]

    sum: (E + M)[t] - M[t] = E[t].

P1 knows both keys, so an unblinded a_0 would tell it a linear equation on E; r hides it, and only
P2 takes r off again. P0 is online for this step alone, and sees one key of each pair, which is
uniform on its own. M is never opened, so one E + M serves many questions.

Adversary: semi-honest, one of three. Source: two-server PIR from point functions (Boyle, Gilboa,
Ishai 2015), with the database itself masked from the second server.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from veilrun.errors import DecodeError
from veilrun.mpc import dpf, ring
from veilrun.mpc.dpf import Domain
from veilrun.mpc.prg import SEED_BYTES, Stream
from veilrun.mpc.shares import Array, dtype_of, wrap
from veilrun.transport.rounds import Protocol, Round

_TABLE: Final = "embedding"
_BLIND: Final = "embedding answer"


def domain_of(n_vocab: int, bits: int) -> Domain:
    """Of the point functions over the vocabulary."""
    return Domain(max((n_vocab - 1).bit_length(), 1), bits)


def mask_table(key_1: bytes, word: Array, bits: int) -> Array:
    """E + M, what the dealer keeps at hand and gives to party 2, once per model."""
    mask = Stream(key_1, _TABLE).uniform(word.shape, bits)
    return wrap(word.astype(mask.dtype) + mask, bits)


def ask(
    key_1: bytes, ids: Sequence[int], n_vocab: int, hidden: int, bits: int, tweak: bytes
) -> Protocol[Array]:
    """Party 1: its shares [n_tokens, hidden] of the rows of `ids`.

    Raises:
        DecodeError: the dealer's answer is no answer.
    """
    domain = domain_of(n_vocab, bits)
    n = len(ids)
    seeds = [np.frombuffer(os.urandom(n * SEED_BYTES), np.uint8).reshape(n, -1) for _ in "02"]
    points = np.asarray(ids, np.uint32)
    corrections = dpf.generate(points, seeds[0], seeds[1], domain, _tweak(tweak))
    frames = [half.tobytes() + corrections.tobytes() for half in seeds]
    inbox = yield Round({"P0": frames[0], "P2": frames[1]}, awaited=frozenset({"P0"}))
    blinded = _rows(inbox["P0"], n, hidden, bits)
    row_bytes = hidden * dtype_of(bits).itemsize
    masks = [Stream(key_1, _TABLE, skip_bytes=t * row_bytes).uniform((hidden,), bits) for t in ids]
    return wrap(blinded - np.stack(masks), bits)


def answer(
    key_2: bytes, masked: ring.Packed, n_tokens: int, bits: int, serial: int, tweak: bytes
) -> Protocol[None]:
    """The dealer: one question about `n_tokens` tokens. masked: E + M [n_vocab, hidden]."""
    inbox = yield Round({}, awaited=frozenset({"P1"}))
    product = _selected(0, inbox["P1"], masked, n_tokens, bits, tweak)
    blind = Stream(key_2, f"{_BLIND} {n_tokens}", serial).uniform(product.shape, bits)
    yield Round({"P1": wrap(product + blind, bits).tobytes()}, awaited=frozenset())


def share(
    key_2: bytes, masked: ring.Packed, n_tokens: int, bits: int, serial: int, tweak: bytes
) -> Protocol[Array]:
    """Party 2: its shares of the rows that party 1 asks for."""
    inbox = yield Round({}, awaited=frozenset({"P1"}))
    product = _selected(1, inbox["P1"], masked, n_tokens, bits, tweak)
    blind = Stream(key_2, f"{_BLIND} {n_tokens}", serial).uniform(product.shape, bits)
    return wrap(product - blind, bits)


def question_bytes(n_tokens: int, n_vocab: int, bits: int) -> int:
    """Of the frame to each server."""
    return n_tokens * (SEED_BYTES + domain_of(n_vocab, bits).correction_bytes)


def answer_bytes(n_tokens: int, hidden: int, bits: int) -> int:
    """Of the dealer's frame to party 1."""
    return n_tokens * hidden * dtype_of(bits).itemsize


def _selected(
    index: int, frame: bytes, masked: ring.Packed, n_tokens: int, bits: int, tweak: bytes
) -> Array:
    """This server's expansions times the masked table."""
    n_vocab = masked.shape[0]
    if len(frame) != question_bytes(n_tokens, n_vocab, bits):
        raise DecodeError(f"a question of {len(frame)} bytes, not about {n_tokens} tokens")
    words = np.frombuffer(frame, np.uint8)
    seeds = words[: n_tokens * SEED_BYTES].reshape(n_tokens, SEED_BYTES)
    corrections = words[n_tokens * SEED_BYTES :].reshape(n_tokens, -1)
    expansions = dpf.expand(index, seeds, corrections, domain_of(n_vocab, bits), _tweak(tweak))
    return ring.matmul(np.ascontiguousarray(expansions[:, :n_vocab]), masked)


def _rows(frame: bytes, n: int, hidden: int, bits: int) -> Array:
    if len(frame) != answer_bytes(n, hidden, bits):
        raise DecodeError(f"an answer of {len(frame)} bytes to a question about {n} tokens")
    words: npt.NDArray[np.unsignedinteger] = np.frombuffer(frame, dtype_of(bits))
    return words.reshape(n, hidden)


def _tweak(tweak: bytes) -> bytes:
    """Not that of the dealer's own point functions."""
    return hashlib.sha256(b"embedding" + tweak).digest()[:16]
