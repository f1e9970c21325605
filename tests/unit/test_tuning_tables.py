"""README and docs say of the tuner what its results say; a number that drifts is noticed."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tables():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    yield importlib.import_module("tuning_tables")
    sys.path.remove(str(ROOT / "benchmarks"))


def test_every_table_is_what_the_results_say(tables):
    n_tables = 0
    for file in tables.FILES:
        text = file.read_text()
        n_tables += text.count("<!-- tuning: ")
        assert tables.filled(text) == text, f"{file.name}: run python benchmarks/tuning_tables.py"
    assert n_tables >= 5


def test_a_changed_number_is_noticed(tables):
    text = (ROOT / "docs" / "tuning.md").read_text()
    table = text.split("<!-- tuning: evaluation -->\n")[1]
    digit = next(one for one in table if one.isdigit())
    changed = text.replace(table, table.replace(digit, str(9 - int(digit)), 1))
    assert changed != text
    assert tables.filled(changed) == text


def test_pictures_are_well_formed_and_shown():
    shown = (ROOT / "docs" / "tuning.md").read_text()
    for name in ("arms", "regret-model"):
        ElementTree.parse(ROOT / "docs" / "tuning" / f"{name}.svg")
        assert f"(tuning/{name}.svg)" in shown
