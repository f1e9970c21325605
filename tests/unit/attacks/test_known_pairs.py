"""Known pairs read themselves, and a note says how much of the traffic they cover."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from red_team_rig import sealed, stories, subject

from veilrun.attacks.holdings import NOBODY
from veilrun.attacks.levels import Level
from veilrun.attacks.methods.known_pairs import ATTACK


def a_subject():
    weights = stories()
    texts = tuple(np.random.default_rng(n).zipf(1.3, 100) % 512 for n in range(5))
    return replace(
        subject(weights, sealed(weights, "vocabulary")), secret=texts, corpora={"same": texts[:1]}
    )


def test_it_reads_the_pairs_and_guesses_nothing_else():
    of = a_subject()
    found = ATTACK.run(of.holdings(Level.PAIRS, 8)).candidates[:, 0]
    known = of.pairs(8)
    assert (found != NOBODY).sum() == len(known.cipher) == 8
    np.testing.assert_array_equal(found[known.cipher], of.sealed.order[known.cipher])


def test_the_note_counts_known_tokens_of_the_traffic():
    of = a_subject()
    known = of.pairs(8).plain
    wanted = np.isin(np.concatenate(of.secret), known).mean()
    notes = ATTACK.run(of.holdings(Level.PAIRS, 8)).notes
    assert notes["share of traffic known"] == pytest.approx(wanted)
    assert 0.1 < wanted < 1.0


def test_who_knows_no_pairs_cannot_try():
    with pytest.raises(LookupError, match="no pairs"):
        ATTACK.run(a_subject().holdings(Level.BASE))
