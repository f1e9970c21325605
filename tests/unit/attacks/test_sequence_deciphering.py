"""Neighbours read real text under a permutation of ids, from little traffic, and noise not."""

from __future__ import annotations

import numpy as np
import pytest
from traffic_rig import dice, in_pieces, letters, read_right, share, stories, traffic

from veilrun.attacks.levels import Level
from veilrun.attacks.methods.sequence_deciphering import ATTACKS
from veilrun.attacks.weights import Ids

DOMAIN, SAME = ATTACKS
START = frozenset({1})


@pytest.mark.parametrize("n_texts, at_least", [(20, 0.95), (100, 0.98)])
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_it_reads_stories(attack, n_texts: int, at_least: float):
    corpora = {"same": stories(1.0, 2), "domain": stories(0.7, 3)}
    of = traffic(stories(1.0, 1)[:n_texts], corpora, 512, START)
    assert share(read_right(attack, of)) > at_least


def test_it_reads_letters():
    text = in_pieces(letters())
    of = traffic(text[:80], {"same": text[4000:6000]}, 65)
    assert share(read_right(SAME, of)) > 0.95


def test_nothing_comes_from_the_order_of_the_ids():
    text = in_pieces(letters())
    of = traffic(text[:20], {"same": text[4000:4400]}, 65)
    have = of.holdings(Level.WIRE)
    again = traffic(have.traffic, of.corpora, 65)
    seen = np.unique(np.concatenate(have.traffic))
    first = SAME.run(have).candidates[seen, 0]
    second = SAME.run(again.holdings(Level.WIRE)).candidates[again.sealed.encode(seen), 0]
    assert (first == second).mean() > 0.9


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_noise_says_nothing(attack):
    corpora = {name: dice(200, 512, seed) for name, seed in (("same", 1), ("domain", 2))}
    assert share(read_right(attack, traffic(dice(200, 512, 0), corpora, 512))) < 0.02


def test_noise_says_nothing_to_who_knows_real_text():
    of = traffic(dice(200, 512, 0), {"same": stories(1.0, 2)}, 512)
    assert share(read_right(SAME, of)) < 0.02


def test_a_new_key_for_every_text_stops_it():
    random = np.random.default_rng(0)
    secret: list[Ids] = [random.permutation(512)[text] for text in stories(1.0, 1)]
    # Under one order on top: each text is under a key of its own.
    of = traffic(secret, {"same": stories(1.0, 2)}, 512)
    assert share(read_right(SAME, of)) < 0.05


def test_an_attacker_without_public_text_is_told():
    with pytest.raises(LookupError, match="no public text of the kind `domain`"):
        read_right(DOMAIN, traffic(dice(1, 512, 0), {}, 512))
