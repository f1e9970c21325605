"""The audit: what is tried, what is kept, what counts as failed, and what no attack may see."""

from __future__ import annotations

import dataclasses
import importlib
import json
import mmap
import pkgutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from card_rig import ORDER, attack, subject

from veilrun.attacks import methods
from veilrun.attacks.attack import Attack
from veilrun.attacks.audit import audit, planned
from veilrun.attacks.card import Outcome
from veilrun.attacks.catalogue import ATTACKS, verify_names
from veilrun.attacks.holdings import Finding, Holdings, Kinship, Substitution
from veilrun.attacks.levels import Level
from veilrun.attacks.meter import Meter
from veilrun.attacks.subject import Copy, Subject
from veilrun.errors import UsageError
from veilrun.keys import MasterKey


class Counting:
    """An attack that notes how often it ran."""

    def __init__(self, name: str, stops_at: int = 0) -> None:
        self.n_runs, self._stops_at = 0, stops_at
        self._inner = attack(name)
        self.attack = attack(name, run=self._run, material=("tables", "traffic"))

    def _run(self, have: Holdings) -> Finding:
        self.n_runs += 1
        if self.n_runs == self._stops_at:
            raise KeyboardInterrupt
        return self._inner.run(have)


def only_outcome(made: Attack, folder: Path, of: Subject | None = None) -> Outcome:
    (found,) = audit(of or subject(), [made], folder).outcomes
    return found


def test_an_attack_is_run_scored_and_measured(tmp_path: Path):
    card = audit(subject(), [attack()], tmp_path)
    (found,) = card.outcomes
    assert found.rate is not None and found.rate.share == 1.0 and found.failed is None
    assert found.elapsed_s > 0 and found.notes["gap"] is not None
    assert card.levels == (Level.WIRE, Level.HOST, Level.BASE, Level.PAIRS)
    assert card.strongest(Level.PAIRS) == card.strongest(Level.BASE) == found
    assert card.strongest(Level.HOST) is None
    assert (card.basis.n_texts, card.basis.n_tokens) == (3, 13)
    assert card.basis.commonest == 4 / 13


def test_it_goes_on_where_it_was_interrupted(tmp_path: Path):
    first, second, third = Counting("a"), Counting("b", stops_at=1), Counting("c")
    attacks = [one.attack for one in (first, second, third)]
    with pytest.raises(KeyboardInterrupt):
        audit(subject(), attacks, tmp_path)
    assert (first.n_runs, second.n_runs, third.n_runs) == (1, 1, 0)
    card = audit(subject(), attacks, tmp_path)
    assert (first.n_runs, second.n_runs, third.n_runs) == (1, 2, 1)
    assert [one.attack for one in card.outcomes] == ["a", "b", "c"]
    assert audit(subject(), attacks, tmp_path) == card
    assert (first.n_runs, second.n_runs, third.n_runs) == (1, 2, 1)


def test_a_result_of_something_else_is_not_taken(tmp_path: Path):
    counting = Counting("a")
    audit(subject(), [counting.attack], tmp_path)
    audit(subject(), [counting.attack], tmp_path, n_pairs=3)
    assert counting.n_runs == 2
    other = subject(sealed=Copy(subject().sealed.model, np.roll(ORDER, 1)))
    audit(other, [counting.attack], tmp_path, n_pairs=3)
    assert counting.n_runs == 3
    audit(subject(secret=subject().secret[:2]), [counting.attack], tmp_path, n_pairs=3)
    assert counting.n_runs == 4


@pytest.mark.parametrize(
    "damage",
    [
        lambda body: b"",
        lambda body: body[:-20],
        lambda body: body.replace(b'"share":1.0', b'"share":0.0'),
        lambda body: body.replace(b'"attack":"a"', b'"attack":"b"'),
        lambda body: body.replace(b'"notes":', b'"more":1,"notes":'),
        lambda body: b"\xff" + body,
        lambda body: json.dumps({"outcome": [], "seal": "00"}).encode(),
    ],
)
def test_a_damaged_result_is_made_again(tmp_path: Path, damage: Any):
    counting = Counting("a")
    whole = audit(subject(), [counting.attack], tmp_path)
    (path,) = tmp_path.iterdir()
    assert damage(path.read_bytes()) != path.read_bytes()
    path.write_bytes(damage(path.read_bytes()))
    again = audit(subject(), [counting.attack], tmp_path)
    assert counting.n_runs == 2
    assert again.outcomes[0].score == whole.outcomes[0].score


@pytest.mark.parametrize(
    "error",
    [
        ValueError("bad shape"),
        np.linalg.LinAlgError("singular"),
        LookupError("this attacker lacks one of the two models"),
        MemoryError(),
        RuntimeError("out of memory"),
        UsageError("the model has one layer"),
    ],
)
def test_a_failure_is_told_and_tried_again(tmp_path: Path, error: Exception):
    broken = [True]

    def run(have: Holdings) -> Finding:
        if broken[0]:
            raise error
        return attack().run(have)

    made = attack(run=run)
    failed = only_outcome(made, tmp_path)
    assert failed.score is None and failed.rate is None
    assert failed.failed is not None and type(error).__name__ in failed.failed
    assert str(error) in failed.failed
    assert audit(subject(), [made], tmp_path).strongest(Level.BASE) is None
    broken[0] = False
    assert only_outcome(made, tmp_path).score is not None


def test_what_cannot_be_scored_has_failed(tmp_path: Path):
    for number, finding in enumerate(
        [Substitution(np.zeros((3, 1), np.int64)), Kinship(1.0, 0.0), Kinship(float("nan"), 1.0)]
    ):
        made = attack(f"odd-{number}", run=lambda have, finding=finding: finding)
        failed = only_outcome(made, tmp_path)
        assert failed.failed is not None and failed.score is None, finding


def test_a_fault_of_ours_is_not_hidden(tmp_path: Path):
    def run(have: Holdings) -> Finding:
        raise TypeError("a slip")

    with pytest.raises(TypeError):
        only_outcome(attack(run=run), tmp_path)


def test_notes_that_are_no_numbers_become_none(tmp_path: Path):
    def run(have: Holdings) -> Finding:
        return Substitution(ORDER[:, None], {"good": 1.5, "bad": float("inf")})

    assert only_outcome(attack(run=run), tmp_path).notes == {"good": 1.5, "bad": None}


def test_controls_tell_a_broken_attack_from_a_protected_model(tmp_path: Path):
    lost = subject(base=subject(sealed=subject().sealed).sealed.model)
    random = replace(lost.base.weights, embedding=np.random.default_rng(9).normal(size=(9, 4)))
    lost = replace(lost, base=replace(lost.base, weights=random))
    found = only_outcome(attack(), tmp_path / "1", of=lost)
    assert found.rate is not None and found.rate.share < 0.5
    assert found.control is not None and found.control.rival == "vocabulary"
    assert found.control.score is not None and found.control.score.tokens is not None
    assert found.control.score.tokens.share == 1.0
    blind = attack(run=lambda have: Substitution(np.full((9, 1), 1)))
    control = only_outcome(blind, tmp_path / "2").control
    assert control is not None and control.score is not None
    assert control.score.vocabulary is not None and control.score.vocabulary.share < 0.2
    for made in (
        attack(breaks="nothing that we have"),
        attack(material=("tables", "traffic")),
    ):
        assert only_outcome(made, tmp_path / "3").control is None


def test_a_failed_control_is_told(tmp_path: Path):
    def run(have: Holdings) -> Finding:
        raise ValueError("always")

    control = only_outcome(attack(run=run), tmp_path).control
    assert control is not None and control.score is None
    assert control.failed == "ValueError: always"


def test_what_cannot_be_tried_is_listed(tmp_path: Path):
    made = [
        attack("a"),
        attack("b", material=("runs",)),
        attack("c", levels=(Level.TWO_HOSTS,), material=("copies",)),
        attack("d", levels=(Level.BASE, Level.PAIRS, Level.FINE_TUNE)),
    ]
    told: list[tuple[str, Level, bool]] = []
    card = audit(
        subject(),
        made,
        tmp_path,
        only=["a", "b", "c"],
        on_task=lambda one, level, outcome: told.append((one.name, level, outcome is None)),
    )
    assert [one.attack for one in card.outcomes] == ["a"]
    assert told == [("a", Level.BASE, True), ("a", Level.BASE, False)]
    reasons = {one.attack: one.reason for one in card.untried}
    assert set(reasons) == {"b", "c", "d"}
    assert "only tables" in reasons["b"] and "one copy" in reasons["c"]
    assert reasons["d"] == "left out on request"
    assert planned(subject(), made) == {"a": 1, "d": 2}


def reachable(value: object, seen: set[int]) -> Iterator[object]:
    """Everything that code holding `value` could get at by attributes, items and closures."""
    if id(value) in seen:
        return
    seen.add(id(value))
    yield value
    inner: list[object] = []
    if isinstance(value, Mapping):
        inner += [*value.keys(), *value.values()]
    elif isinstance(value, list | tuple | set | frozenset):
        inner += list(value)
    if dataclasses.is_dataclass(value):
        inner += [getattr(value, one.name) for one in dataclasses.fields(value)]
    if not isinstance(value, type | np.ndarray):
        inner += list(getattr(value, "__dict__", {}).values())
        inner += [cell.cell_contents for cell in getattr(value, "__closure__", None) or ()]
    for one in inner:
        yield from reachable(one, seen)


@pytest.mark.parametrize("level", list(Level))
def test_no_attacker_holds_the_order(level: Level):
    truth = subject()
    second = Copy(truth.base, np.roll(ORDER, 2))
    truth = replace(truth, copies=(second,), corpora={"same": truth.secret[:1]})
    have = truth.holdings(level, 2)
    orders = [ORDER, np.argsort(ORDER), second.order, np.argsort(second.order)]
    for one in reachable(have, set()):
        assert not isinstance(one, Subject | Copy | MasterKey)
        if isinstance(one, np.ndarray):
            assert not any(np.array_equal(one, order) for order in orders)
            assert not any(np.shares_memory(one, order) for order in (ORDER, second.order))
            assert not any(np.array_equal(one, text) for text in truth.secret[1:])


def test_an_attack_gets_holdings_of_its_level_and_nothing_else(tmp_path: Path):
    seen: list[Holdings] = []

    def run(*given: object, **named: object) -> Finding:
        assert len(given) == 1 and not named and isinstance(given[0], Holdings)
        seen.append(given[0])
        return Substitution(np.full((9, 1), 1))

    made = attack(run=run, levels=tuple(Level), material=("traffic",))
    audit(subject(), [made], tmp_path, n_pairs=2)
    assert [one.level for one in seen] == [Level.WIRE, Level.HOST, Level.BASE, Level.PAIRS]
    for have in seen:
        hosts, based = have.level is not Level.WIRE, have.level in (Level.BASE, Level.PAIRS)
        assert (have.sealed is not None) == hosts and (have.base is not None) == based
        assert (have.pairs is not None) == (have.level is Level.PAIRS) and not have.copies


def test_a_meter_sees_time_and_memory():
    with Meter() as meter:
        fresh = mmap.mmap(-1, 320_000_000)  # an array may get memory that the process kept
        block = np.frombuffer(fresh, np.float64)
        block.fill(1.0)
        total = sum(float(block.sum()) for _ in range(20))
    assert total > 0 and meter.elapsed_s > 0 and meter.cpu_s > 0
    assert meter.extra_bytes >= 0.8 * block.nbytes
    with pytest.raises(ValueError, match="inside"), Meter() as meter:
        raise ValueError("inside")
    assert meter.elapsed_s > 0


def test_the_catalogue_has_every_method_once():
    names = [one.name for one in ATTACKS]
    assert len(names) == len(set(names))
    for found in pkgutil.iter_modules(methods.__path__):
        module = importlib.import_module(f"veilrun.attacks.methods.{found.name}")
        made = getattr(module, "ATTACKS", None) or (module.ATTACK,)
        assert all(any(one is attack for attack in ATTACKS) for one in made), found.name
    verify_names(names)
    with pytest.raises(UsageError, match="sort-and-hash"):
        verify_names(["sort-and-hsah"])
