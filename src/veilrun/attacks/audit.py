"""The audit: every attack against one subject, measured, and the card that says what came out.

1. Of each attack, the levels that the subject has; or why it cannot be tried.
2. Run it on what an attacker of that level holds, under a meter, and score what it finds. An
   attack that raises has failed, with its reason; it never counts as one that read nothing.
3. An attack on tables alone has a control: the same attack on the public model under the
   transform that it must break, with a key made here.
4. Each outcome is written down at once. A second audit of the same subject by the same code
   takes what is there and does the rest; failures are tried again.

Invariant: an attack gets `Subject.holdings` of its level and nothing else.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from veilrun.attacks.attack import Attack
from veilrun.attacks.card import Basis, Card, Control, Facts, Outcome, Untried
from veilrun.attacks.context import digest_of, software
from veilrun.attacks.holdings import Finding, Holdings, Model
from veilrun.attacks.levels import Level
from veilrun.attacks.meter import Meter
from veilrun.attacks.metrics import Score, score
from veilrun.attacks.results import Results
from veilrun.attacks.rivals import RIVALS, seal
from veilrun.attacks.subject import N_PAIRS, Copy, Subject
from veilrun.errors import VeilrunError
from veilrun.keys import KEY_BYTES, MasterKey

OnTask = Callable[[Attack, Level, Outcome | None], None]
"""Told when an attack begins (None), and what came of it."""

_FAILURES: Final = (
    ValueError,
    LookupError,
    ArithmeticError,
    RuntimeError,
    MemoryError,
    VeilrunError,
)
"""What an attack may raise on a model that does not suit it; anything else is a fault of ours."""

_CONTROL_KEY: Final = MasterKey(bytes(KEY_BYTES))


@dataclass(frozen=True, slots=True)
class _Task:
    attack: Attack
    level: Level


def audit(
    subject: Subject,
    attacks: Sequence[Attack],
    folder: Path,
    *,
    n_pairs: int = N_PAIRS,
    only: Collection[str] | None = None,
    on_task: OnTask = lambda attack, level, outcome: None,
) -> Card:
    """Make `attacks` on `subject`; results are kept in `folder`.

    n_pairs: known pairs, at the level that has some. only: names of attacks; the rest is left
        out, and the card says so.

    Raises:
        StorageError: a result cannot be written.
    """
    results = Results(folder, digest_of(subject, n_pairs))
    outcomes: list[Outcome] = []
    for task in _tasks(subject, attacks, only):
        on_task(task.attack, task.level, None)
        outcome = results.read(task.attack.name, task.level)
        if outcome is None or outcome.failed is not None:
            outcome = _try(task, subject, n_pairs)
            results.write(outcome)
        outcomes.append(outcome)
        on_task(task.attack, task.level, outcome)
    return Card(
        model=subject.name,
        mode=subject.mode,
        levels=tuple(level for level in Level if level in subject.levels),
        attacks=tuple(_facts(one) for one in attacks),
        outcomes=tuple(outcomes),
        untried=tuple(_untried(subject, attacks, only)),
        basis=_basis(subject, n_pairs),
    )


def planned(
    subject: Subject, attacks: Sequence[Attack], only: Collection[str] | None = None
) -> dict[str, int]:
    """How many levels each attack will be tried at, by name; those that cannot be are left out."""
    return dict(Counter(task.attack.name for task in _tasks(subject, attacks, only)))


def _tasks(
    subject: Subject, attacks: Sequence[Attack], only: Collection[str] | None
) -> Iterator[_Task]:
    for attack in attacks:
        if (only is None or attack.name in only) and subject.lacks(attack) is None:
            for level in Level:
                if level in subject.levels and level in attack.levels:
                    yield _Task(attack, level)


def _untried(
    subject: Subject, attacks: Sequence[Attack], only: Collection[str] | None
) -> Iterator[Untried]:
    for attack in attacks:
        reason = subject.lacks(attack)
        if reason is not None:
            yield Untried(attack.name, reason)
        elif only is not None and attack.name not in only:
            yield Untried(attack.name, "left out on request")


def _try(task: _Task, subject: Subject, n_pairs: int) -> Outcome:
    meter = Meter()
    result: Score | None = None
    failed: str | None = None
    notes: dict[str, float | None] = {}
    try:
        have = subject.holdings(task.level, n_pairs)
        with meter:
            finding = task.attack.run(have)
        notes = {name: _finite(value) for name, value in finding.notes.items()}
        result = _scored(finding, subject, have)
    except _FAILURES as error:
        failed = _reason(error)
    return Outcome(
        attack=task.attack.name,
        level=task.level,
        score=result,
        failed=failed,
        notes=notes,
        elapsed_s=meter.elapsed_s,
        cpu_s=meter.cpu_s,
        extra_bytes=meter.extra_bytes,
        control=_control(task, subject, n_pairs),
    )


def _control(task: _Task, subject: Subject, n_pairs: int) -> Control | None:
    """The attack on the public model's tables under what it must break."""
    attack = task.attack
    if not set(attack.material) <= {"tables", "head"} or attack.breaks not in RIVALS:
        return None
    try:
        known = subject.base.weights
        copy = seal(known, _CONTROL_KEY.stream("control", attack.breaks), RIVALS[attack.breaks])
        control = replace(
            subject,
            sealed=Copy(Model(copy.weights), copy.order),
            base=Model(known),
            copies=(),
            fine_tuned=False,
        )
        have = control.holdings(task.level, n_pairs)
        return Control(attack.breaks, _scored(attack.run(have), control, have), None)
    except _FAILURES as error:
        return Control(attack.breaks, None, _reason(error))


def _scored(finding: Finding, subject: Subject, have: Holdings) -> Score:
    result = score(finding, subject, have)
    if result.kinship is not None and not math.isfinite(result.kinship):
        raise ArithmeticError("the similarity is not a number")
    return result


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:500]


def _facts(attack: Attack) -> Facts:
    return Facts(
        name=attack.name,
        title=attack.title,
        knows=attack.knows,
        recovers=attack.recovers,
        stops=attack.stops,
        source=attack.source,
        cost=attack.cost,
    )


def _basis(subject: Subject, n_pairs: int) -> Basis:
    special = subject.special
    counts = Counter(
        token for text in subject.secret for token in text.tolist() if token not in special
    )
    weights = subject.sealed.model.weights
    return Basis(
        vocab_size=subject.vocab_size,
        hidden=weights.hidden,
        n_layers=len(weights.layers),
        n_texts=len(subject.secret),
        n_tokens=counts.total(),
        commonest=max(counts.values(), default=0) / max(counts.total(), 1),
        n_pairs=n_pairs,
        corpora={name: sum(map(len, texts)) for name, texts in subject.corpora.items()},
        software=software(),
    )
