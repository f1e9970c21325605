"""Counts read the commonest tokens of real text, and nothing where all are equally common."""

from __future__ import annotations

import numpy as np
import pytest
from traffic_rig import dice, in_pieces, letters, read_right, share, stories, traffic

from veilrun.attacks.methods.token_frequency import ATTACKS

FOREIGN, DOMAIN, SAME = ATTACKS


def test_shares_that_differ_enough_are_read_in_full():
    # Zipf's law with real gaps: id i comes about 2^-i of the time.
    def text(seed: int):
        ids = np.minimum(np.random.default_rng(seed).geometric(0.5, 20_000) - 1, 63)
        return in_pieces(ids)

    of = traffic(text(0), {"same": text(1)}, 64)
    assert share(read_right(SAME, of)) > 0.95


def test_counts_narrow_stories_down():
    of = traffic(stories(1.0, 1), {"same": stories(1.0, 2)}, 512, frozenset({1}))
    result = read_right(SAME, of)
    assert share(result) > 0.05  # by chance: 0.002
    assert result.top_10 is not None and result.top_10.share > 0.5
    assert result.top_100 is not None and result.top_100.share > 0.98


def test_the_nearer_the_text_the_more_it_says():
    text = in_pieces(letters())
    corpora = {"same": text[2000:3000], "foreign": dice(200, 65, 1)}
    of = traffic(text[:1000], corpora, 65)
    assert share(read_right(SAME, of)) > 0.5 > 0.1 > share(read_right(FOREIGN, of))


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_equal_counts_say_nothing(attack):
    corpora = {name: dice(200, 512, at) for at, name in enumerate(("same", "domain", "foreign"))}
    of = traffic(dice(200, 512, 9), corpora, 512)
    result = read_right(attack, of)
    assert share(result) < 0.02
    assert result.top_10 is not None and result.top_10.share < 0.05


def test_guesses_are_different_tokens_and_all_there():
    of = traffic(stories(1.0, 1)[:5], {"same": stories(1.0, 2)}, 512)
    candidates = SAME.run(of.holdings(SAME.levels[0])).candidates
    assert candidates.shape == (512, 100)
    assert all(len(set(row)) == 100 for row in candidates.tolist())
    assert sorted(candidates[:, 0]) == list(range(512))
