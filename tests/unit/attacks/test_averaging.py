"""Averaging: several noisy copies give away what one does not, if they share the vocabulary's
key; under independent ones another copy is of no use to who holds the base."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from red_team_rig import KEY, recovered, sealed, subject, unrelated

from veilrun.attacks.holdings import Model
from veilrun.attacks.levels import Level
from veilrun.attacks.methods.averaging import ATTACK
from veilrun.attacks.rivals import Noise, Sealed, covariant_copy
from veilrun.attacks.subject import Copy
from veilrun.attacks.weights import read_weights
from veilrun.bundled import prompter

NOISE = Noise(12.0, 2.4, expansion=16)


def bundled():
    return read_weights(prompter())


def copies(weights, n, *, one_vocabulary, noise=NOISE):
    """Copies under different keys; with one_vocabulary, tokens keep their cipher ids."""
    made = [covariant_copy(weights, KEY.stream("average", str(i)), noise) for i in range(n)]
    return [reordered(one, made[0].order) if one_vocabulary else one for one in made]


def reordered(copy, order):
    rows = np.argsort(copy.order)[order]
    weights = replace(
        copy.weights, embedding=copy.weights.embedding[rows], head=copy.weights.head[rows]
    )
    return Sealed(weights, order)


def share(weights, made, base=None):
    others = tuple(Copy(Model(one.weights), one.order) for one in made[1:])
    of = replace(subject(weights, made[0], base=base), copies=others)
    return recovered(ATTACK, of, Level.TWO_HOSTS)


def test_exact_copies_fall():
    weights = bundled()
    assert share(weights, [sealed(weights, "invertible", label) for label in "ab"]) > 0.99


def test_eight_copies_that_share_ids_average_the_noise_away():
    weights = bundled()
    made = copies(weights, 8, one_vocabulary=True)
    alone = share(weights, made[:1])
    assert share(weights, made) > alone + 0.2


def test_copies_under_vocabulary_keys_of_their_own_add_nothing():
    weights = bundled()
    made = copies(weights, 4, one_vocabulary=False)
    assert share(weights, made) < share(weights, made[:1]) + 0.05


def test_unrelated_tables_match_by_chance_only():
    weights = bundled()
    made = [sealed(weights, "invertible", label) for label in "ab"]
    assert share(weights, made, base=unrelated(weights)) < 0.02
