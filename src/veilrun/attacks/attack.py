"""What an attack is: a function from holdings to a finding, and what a reader must know of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from veilrun.attacks.holdings import Finding, Holdings
from veilrun.attacks.levels import Level

Material = Literal["traffic", "tables", "head", "runs", "copies"]
"""What a subject must have for an attack to be tried: recorded ids; embedding and readers; a
head beside them; models that run; a second encrypted copy."""


@dataclass(frozen=True, slots=True)
class Attack:
    """One attack. Each lives in a file of its own in `methods`, which ends with its `ATTACK`.

    name: the word for it in cards and file names. title: for people.
    levels: the attackers that can try it. material: what the subject must have.
    knows: what the attacker uses, in words. recovers: what it yields.
    breaks: the transform that it must break, and is shown to in the tests.
    stops: what would have to change to stop it.
    source: where it is from. cost: how its work grows (V vocabulary, d hidden size, T tokens).
    run: pure; the same holdings give the same finding.
    """

    name: str
    title: str
    levels: tuple[Level, ...]
    material: tuple[Material, ...]
    knows: str
    recovers: str
    breaks: str
    stops: str
    source: str
    cost: str
    run: Callable[[Holdings], Finding]
