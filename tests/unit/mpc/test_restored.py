"""A dealer whose folder was put back, as from a backup: it deals old serials again."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mpc_model_rig as rig
import numpy as np
import pytest

from veilrun.mpc import embedding, inference, ring
from veilrun.mpc.roles.dealer import Dealer
from veilrun.mpc.shares import dtype_of

DIGEST = b"\x01" * 32


def test_another_length_of_a_serial_has_other_masks(tmp_path: Path, monkeypatch) -> None:
    model = rig.quantised(rig.float_model(rig.architecture(n_layers=1)))
    read: list[tuple[bytes, bytes]] = []
    real = inference.deal

    def deal(model: Any, n_tokens: int, streams: Any, writes: Any, tweak: bytes) -> None:
        read.append(tuple(stream.read(64) for stream in streams))
        real(model, n_tokens, streams, writes, tweak)

    monkeypatch.setattr(inference, "deal", deal)
    seat: Any = SimpleNamespace(state=tmp_path / "state")
    Dealer(seat, model, b"{}", DIGEST)
    shutil.copytree(tmp_path / "state", tmp_path / "backup")
    given = []
    for n_tokens in (4, 5, 4):
        given += Dealer(seat, model, b"{}", DIGEST).deal(n_tokens).serials.tolist()
        shutil.rmtree(tmp_path / "state")
        shutil.copytree(tmp_path / "backup", tmp_path / "state")
    assert given == [1, 1, 1]
    four, five, again = read
    assert four == again  # the same dealing: what a party has is no news to it
    assert not set(four) & set(five)


@pytest.mark.parametrize("bits", [16, 32])
def test_another_length_of_a_question_is_blinded_otherwise(bits: int) -> None:
    nothing = ring.pack(np.zeros((8, 6), dtype_of(bits)))  # so an answer is its blinding alone
    answers = []
    for n_tokens in (1, 2):
        asked = embedding.answer(bytes(32), nothing, n_tokens, bits, 1, bytes(16))
        next(asked)
        size = embedding.question_bytes(n_tokens, 8, bits)
        answers.append(asked.send({"P1": bytes(size)}).outgoing["P1"])
    first, second = answers
    assert len(second) == 2 * len(first) and not second.startswith(first)
