"""README, SECURITY and docs say what the cards say; a number that drifts is noticed."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module", autouse=True)
def benchmarks_on_path():
    sys.path.insert(0, str(BENCHMARKS))
    yield
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def tables(benchmarks_on_path):
    return importlib.import_module("red_team_tables")


def test_every_table_is_what_the_cards_say(tables):
    cards, lines = tables.load()
    n_tables = 0
    for file in tables.FILES:
        text = file.read_text()
        n_tables += text.count("<!-- red-team: ")
        assert tables.filled(text, cards, lines) == text, (
            f"{file.name} has drifted: run python benchmarks/red_team_tables.py"
        )
    assert n_tables >= 6


def test_a_changed_number_is_noticed(tables):
    cards, lines = tables.load()
    text = (tables.ROOT / "README.md").read_text()
    changed = text.replace("100 %", "99.9 %", 1)
    assert changed != text and tables.filled(changed, cards, lines) == text


def test_cards_are_of_attacks_that_worked(tables):
    """Each attack on tables broke what it must break, beside the number that it gave."""
    cards, _ = tables.load()
    for card in cards.values():
        assert card.outcomes and not [one.attack for one in card.outcomes if one.failed]
        for one in card.outcomes:
            if one.control is None or one.control.score is None:
                continue
            kinship, rate = one.control.score.kinship, one.control.score.tokens
            assert (kinship or 0) > 1 or (rate is not None and rate.share > 0.9), one.attack


def test_the_frontier_is_well_formed(tables):
    drawing = ElementTree.fromstring((tables.DOCS / "frontier.svg").read_text())
    titles = [one.text for one in drawing.iter("{http://www.w3.org/2000/svg}title")]
    cards, _ = tables.load()
    for mode in cards:
        assert any(mode in (title or "") for title in titles)
