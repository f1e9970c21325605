"""Two geometries of one language: copies align; a model and a text do to a part; noise does not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import red_team_rig as rig
from red_team_rig import minilm, sealed, subject, unrelated
from traffic_rig import read_right, share, stories

from veilrun.attacks.levels import Level
from veilrun.attacks.methods.geometry_alignment import ATTACK, align_geometries, geometry
from veilrun.attacks.methods.token_frequency import ATTACKS
from veilrun.attacks.weights import Table, Weights


def rows_of(name: str) -> Table:
    return rig.stories().embedding[259:] if name == "stories260K" else minilm().embedding[2000:2400]


def aligned(theirs: Table, ours: Table) -> np.ndarray:
    nothing = np.zeros((len(theirs), len(ours)))
    return align_geometries([geometry(theirs)], [geometry(ours)], nothing).order


@pytest.mark.parametrize("name", ["stories260K", "MiniLM"])
@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_a_noisy_turned_copy_aligns_without_any_hint(name: str, noise: float):
    rows, random = rows_of(name), np.random.default_rng(0)
    order = random.permutation(len(rows))
    turn = np.linalg.qr(random.standard_normal((rows.shape[1], rows.shape[1])))[0]
    copy = rows @ turn + noise * rows.std() * random.standard_normal(rows.shape)
    assert (aligned(copy[order], rows) == order).mean() > 0.95


def test_random_rows_do_not_align():
    rows, random = rows_of("MiniLM"), np.random.default_rng(0)
    order = random.permutation(len(rows))
    noise = random.standard_normal(rows.shape)
    assert (aligned(noise[order], rows) == order).mean() < 0.02


def with_text(weights: Weights, rival: str = "orthogonal"):
    of = subject(weights, sealed(weights, rival))
    corpora = {"same": stories(1.0, 2)}
    return replace(of, secret=stories(1.0, 1), corpora=corpora, special=frozenset({1}))


def test_tables_without_a_base_tell_much_more_than_counts():
    of = with_text(rig.stories())
    assert share(read_right(ATTACK, of, Level.HOST)) > 0.5
    assert share(read_right(ATTACKS[2], of)) < 0.35


def test_random_tables_tell_nothing_beyond_counts():
    assert share(read_right(ATTACK, with_text(unrelated(rig.stories())), Level.HOST)) < 0.35


def test_a_key_that_changes_angles_costs_it():
    kept = share(read_right(ATTACK, with_text(rig.stories()), Level.HOST))
    lost = share(read_right(ATTACK, with_text(rig.stories(), "invertible"), Level.HOST))
    assert lost < kept - 0.2


def test_too_little_text_is_said():
    few = replace(with_text(rig.stories()), secret=(stories(1.0, 1)[0][:10],))
    with pytest.raises(LookupError, match="no id is common"):
        read_right(ATTACK, few, Level.HOST)
