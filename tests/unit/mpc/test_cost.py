"""The cost model. Invariant: what it says before a run is what the run then takes, to the byte."""

from __future__ import annotations

import dataclasses

import mpc_model_rig as rig
import numpy as np
import pytest

from veilrun.errors import UsageError
from veilrun.mpc import cost
from veilrun.mpc.model.quantised import CLIENT_EMBEDDING, SECRET_EMBEDDING
from veilrun.mpc.profile import W1A4, W16A8, Lookups
from veilrun.mpc.tables import ExpTable, Table
from veilrun.transport.memory import Link

CASES = [
    ("bert", False, SECRET_EMBEDDING, W16A8),
    ("distilbert", False, CLIENT_EMBEDDING, W16A8),
    ("roberta", False, SECRET_EMBEDDING, W16A8),
    ("bert", True, SECRET_EMBEDDING, W16A8),
    ("bert", True, CLIENT_EMBEDDING, W1A4),
    ("roberta", False, SECRET_EMBEDDING, W1A4),
]


@pytest.mark.parametrize(("family", "is_encoder", "kind", "profile"), CASES)
def test_the_bytes_and_rounds_are_those_of_a_run(family, is_encoder, kind, profile):
    shape = rig.architecture(family, is_encoder=is_encoder)
    model = rig.quantised(rig.float_model(shape), profile=profile, kind=kind)
    for ids in rig.texts(shape, 2, seed=3):
        ran = rig.run(model, ids)
        said = cost.predict(model.public, len(ids))
        assert np.array_equal(ran.answer.integers, ran.twin.integers)  # and the run was a good one
        assert ran.answer.flagged == ran.twin.flagged
        assert (said.to_p1_bytes, said.to_p2_bytes) == ran.dealt
        # Party 2 does not wait for the dealer's answer; half the time that is one latency less.
        saved = said.n_embedding_rounds + said.n_online_rounds - ran.cost.n_rounds
        assert saved == (kind == SECRET_EMBEDDING)
        assert said.embedding_bytes + said.online_bytes == ran.cost.sent_bytes
        question = said.question_bytes
        assert ran.sent_bytes("P1", "P0") == question
        assert ran.sent_bytes("P1", "P2") == question + said.p1_to_p2_bytes
        assert ran.sent_bytes("P0", "P1") == said.answer_bytes
        assert ran.sent_bytes("P2", "P1") == said.p2_to_p1_bytes
        assert said.total_bytes == sum(ran.dealt) + ran.cost.sent_bytes


@pytest.mark.parametrize("kind", [SECRET_EMBEDDING, CLIENT_EMBEDDING])
@pytest.mark.parametrize("profile", [W16A8, W1A4], ids=lambda one: one.name)
def test_a_shape_without_a_model_costs_the_same(kind, profile):
    shape = rig.architecture()
    model = rig.quantised(rig.float_model(shape), profile=profile, kind=kind)
    bare = cost.shape_only(shape, profile, kind)
    for n_tokens in (1, 5, 26):
        assert cost.predict(bare, n_tokens) == cost.predict(model.public, n_tokens)


def test_a_shape_without_a_model_has_guards_where_a_model_has():
    exp = Lookups(9)  # so many entries that a step table of e^x goes by keys
    by_keys = dataclasses.replace(
        W1A4, name="keys", functions=dataclasses.replace(W1A4.functions, exp=exp)
    )
    shape = rig.architecture()
    for profile in (W16A8, W1A4, by_keys):
        model = rig.quantised(rig.float_model(shape), profile=profile)
        bare = cost.shape_only(shape, profile, SECRET_EMBEDDING)
        for name, table in model.public.tables.items():
            assert has_guard(bare.tables[name]) == has_guard(table), name
        assert cost.predict(bare, 5) == cost.predict(model.public, 5)


def has_guard(table: Table) -> bool:
    return not isinstance(table, ExpTable) and table.guard is not None


def test_bert_base_stays_within_its_budget():
    public = cost.shape_only(cost.BERT_BASE, W16A8, SECRET_EMBEDDING)
    for n_tokens, megabytes in ((8, 1.5), (128, 1.7)):
        said = cost.predict(public, n_tokens)
        assert said.online_bytes / n_tokens < megabytes * 1e6
        assert said.n_online_rounds < 16 * 12
        assert said.embedding_bytes / n_tokens < 4e3


def test_seconds_add_up():
    public = cost.shape_only(cost.BERT_BASE, W16A8, SECRET_EMBEDDING)
    said = cost.predict(public, 8)
    instant = cost.Speed(*[np.inf] * 7)
    slow = cost.seconds(said, Link(latency_s=1.0), instant)
    assert (slow.offline, slow.embedding, slow.online) == (1, 2, said.n_online_rounds)
    assert slow.answer == 2 + said.n_online_rounds
    narrow = cost.seconds(said, Link(bytes_per_s=1.0), instant)
    assert narrow.offline == said.offline_bytes and narrow.embedding == said.embedding_bytes
    assert narrow.online == said.p2_to_p1_bytes
    busy = cost.seconds(said, Link(), cost.Speed(1.0, *[np.inf] * 6))
    assert busy.online == said.work.n_macs


def test_the_probe_measures_this_machine():
    speed = cost.measure(8, W16A8)
    assert all(1e2 < value < 1e13 for value in dataclasses.astuple(speed))


@pytest.mark.parametrize("n_tokens", [0, -1, 513])
def test_a_length_that_the_model_does_not_take_is_refused(n_tokens):
    public = cost.shape_only(cost.BERT_BASE, W16A8, SECRET_EMBEDDING)
    with pytest.raises(UsageError, match="1 to 512 tokens"):
        cost.predict(public, n_tokens)
