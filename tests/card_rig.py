"""Small subjects, attacks and cards for the audit's tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from veilrun.attacks.attack import Attack
from veilrun.attacks.card import Basis, Card, Control, Facts, Outcome, Untried
from veilrun.attacks.holdings import Finding, Holdings, Model, Substitution
from veilrun.attacks.levels import Level
from veilrun.attacks.metrics import Rate, Score
from veilrun.attacks.subject import Copy, Subject
from veilrun.attacks.weights import Weights
from veilrun.equivariant.families.table import Shape

WORDS = ("<s>", "the", "cat", "sat", "on", "Tim", "met", "Lily", "</s>")
ORDER = np.array([3, 8, 0, 5, 1, 7, 2, 6, 4])
TEXTS = tuple(np.array([0, *text, 8]) for text in ([1, 2, 3, 4, 1, 2], [1, 6, 7, 1], [5, 6, 7]))


def words(ids: Sequence[int]) -> str:
    return " ".join(WORDS[one] for one in ids if 0 < one < 8)


def subject(**changes: object) -> Subject:
    """Nine tokens under a permutation, a stream of four, one fixed key; three texts."""
    plain = np.random.default_rng(0).standard_normal((9, 4))
    shape = Shape(0, 4, 1, 1, 4, 0, 9)

    def weights(table: np.ndarray) -> Weights:
        return Weights(table, None, (), shape)

    made = Subject(
        name="tiny",
        mode="ee, residual key none",
        sealed=Copy(Model(weights(plain[ORDER])), ORDER),
        base=Model(weights(plain)),
        words=words,
        secret=TEXTS,
        corpora={"same": TEXTS},
        special=frozenset({0, 8}),
    )
    return replace(made, **changes)


def attack(name: str = "matching", run: object = None, **changes: object) -> Attack:
    """An attack that compares rows: right on `subject`."""

    def nearest(have: Holdings) -> Finding:
        sealed, base = have.tables
        gaps = np.square(sealed.embedding[:, None] - base.embedding).sum(2)
        return Substitution(np.argsort(gaps, axis=1)[:, :3], {"gap": float(gaps.min(1).max())})

    made = Attack(
        name=name,
        title=f"{name} rows",
        levels=(Level.BASE,),
        material=("tables",),
        knows="both embeddings",
        recovers="the permutation",
        breaks="vocabulary",
        stops="a key",
        source="own",
        cost="V^2 d",
        run=run or nearest,
    )
    return replace(made, **changes)


def rate(share: float, n: int = 200) -> Rate:
    return Rate(share, max(share - 0.02, 0.0), min(share + 0.02, 1.0), n)


def outcome(name: str, level: Level, share: float | None, **changes: object) -> Outcome:
    """An attack that read `share` of the tokens, or failed."""
    found = None if share is None else Score(tokens=rate(share), vocabulary=rate(share), bleu=share)
    made = Outcome(
        attack=name,
        level=level,
        score=found,
        failed="LinAlgError: singular" if share is None else None,
        notes={"rounds": 3.0, "odd": None},
        elapsed_s=1.25,
        cpu_s=2.5,
        extra_bytes=3_000_000,
        control=None,
    )
    return replace(made, **changes)


def card(*outcomes: Outcome, **changes: object) -> Card:
    """A card with these outcomes, and with one attack that was not tried."""
    if not outcomes:
        outcomes = (
            outcome("frequency", Level.WIRE, 0.12),
            outcome("geometry", Level.HOST, 0.03),
            outcome(
                "eigen",
                Level.BASE,
                1.0,
                control=Control("invertible", Score(vocabulary=rate(0.998)), None),
            ),
            outcome(
                "sorting", Level.BASE, None, control=Control("permutation", None, "ValueError")
            ),
            outcome("ridge", Level.PAIRS, 0.7),
            outcome("kin", Level.BASE, None, score=Score(kinship=3.25), failed=None),
        )
    names = [*dict.fromkeys(one.attack for one in outcomes), "untried"]
    made = Card(
        model="stories260K",
        mode="ee, residual key structured",
        levels=(Level.WIRE, Level.HOST, Level.BASE, Level.PAIRS),
        attacks=tuple(
            Facts(
                name,
                f"{name} attack",
                "both tables",
                "the permutation",
                f"what stops {name}",
                "arXiv 1234.56789",
                "V^2 d",
            )
            for name in names
        ),
        outcomes=tuple(outcomes),
        untried=(Untried("untried", "there is one copy only"),),
        basis=Basis(
            vocab_size=512,
            hidden=64,
            n_layers=5,
            n_texts=200,
            n_tokens=25_000,
            commonest=0.05,
            n_pairs=64,
            corpora={"same": 25_000, "foreign": 20_000},
            software={"veilrun": "0.1.0", "python": "3.11.7"},
        ),
    )
    return replace(made, **changes)
