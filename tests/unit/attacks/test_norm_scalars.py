"""Norms and leverage scores name tokens under any key of the stream, where digits are kept."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from red_team_rig import KEY, minilm, part_of_minilm, recovered, sealed, stories, subject, unrelated

from veilrun.attacks import rivals
from veilrun.attacks.levels import Level
from veilrun.attacks.methods.norm_scalars import ATTACK
from veilrun.attacks.rivals import Noise, Sealed
from veilrun.attacks.subject import Subject
from veilrun.attacks.weights import Table, Weights


def stored(weights: Weights, dtype: torch.dtype) -> Weights:
    """Both ends rounded to `dtype`."""

    def rounded(rows: Table) -> Table:
        return torch.from_numpy(rows).to(dtype).double().numpy()

    head = None if weights.head is None else rounded(weights.head)
    return replace(weights, embedding=rounded(weights.embedding), head=head)


def stored_subject(weights: Weights, rival: str, dtype: torch.dtype) -> Subject:
    base = stored(weights, dtype)
    copy = sealed(base, rival)
    return subject(base, Sealed(stored(copy.weights, dtype), copy.order))


def used(of: Subject) -> set[str]:
    notes = ATTACK.run(of.holdings(Level.BASE)).notes
    return {name.removeprefix("uses ") for name, one in notes.items() if one == 1.0}


@pytest.mark.parametrize("tables", [stories, part_of_minilm], ids=["stories260K", "MiniLM"])
@pytest.mark.parametrize("rival", ["scaled", "orthogonal", "invertible"])
def test_four_bytes_a_weight_name_every_token(tables, rival):
    assert recovered(ATTACK, stored_subject(tables(), rival, torch.float32)) > 0.999


def test_norms_count_where_the_key_is_orthogonal_alone():
    of = stored_subject(stories(), "orthogonal", torch.float32)
    assert used(of) == {"embedding norm", "embedding leverage", "head norm", "head leverage"}
    of = stored_subject(stories(), "invertible", torch.float32)
    assert used(of) == {"embedding leverage", "head leverage"}
    of = stored_subject(replace(stories(), head=None), "orthogonal", torch.float32)
    assert used(of) == {"embedding norm", "embedding leverage"}


def test_two_bytes_a_weight_blur_one_scalar_but_not_all_together():
    of = stored_subject(minilm(), "orthogonal", torch.bfloat16)
    assert recovered(ATTACK, of) > 0.9
    of = stored_subject(minilm(), "invertible", torch.bfloat16)
    assert recovered(ATTACK, of) < 0.9


def test_an_expanded_key_without_noise_keeps_leverage():
    weights = stories()
    noise = Noise(embedding=0.0, head=0.0, expansion=32)
    copy = rivals.covariant_copy(weights, KEY.stream("covariant"), noise)
    assert recovered(ATTACK, subject(weights, copy)) > 0.99


@pytest.mark.parametrize("amount", [0.5, 1.0])
def test_noise_defeats_them(amount):
    weights, noise = stories(), Noise(embedding=amount, head=0.2, expansion=32)
    copy = rivals.covariant_copy(weights, KEY.stream("covariant"), noise)
    assert recovered(ATTACK, subject(weights, copy)) < 0.05


def test_unrelated_tables_match_by_chance_only():
    weights = stories()
    of = subject(weights, sealed(weights, "orthogonal"), base=unrelated(weights))
    assert recovered(ATTACK, of) < 0.02
