"""The house rules that no linter knows."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import veilrun
from veilrun import errors

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
ALL = SOURCES + [path for name in ("tests", "benchmarks") for path in (ROOT / name).rglob("*.py")]


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


@pytest.mark.parametrize("path", ALL, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_stay_small(path: Path):
    assert len(path.read_text().splitlines()) <= 400
    for one in functions(path):
        assert (one.end_lineno or 0) - one.lineno < 60, one.name


def test_no_two_files_of_tests_share_a_name():
    names = Counter(path.name for path in (ROOT / "tests").rglob("*.py"))
    shared = {name for name, times in names.items() if times > 1}
    assert shared <= {"conftest.py"}  # pytest imports the others by their bare names


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_verify_returns_nothing(path: Path):
    for one in functions(path):
        if one.name.startswith("verify"):
            assert isinstance(one.returns, ast.Constant) and one.returns.value is None, one.name


def test_public_names_are_sorted_and_real():
    assert veilrun.__all__ == sorted(veilrun.__all__)
    for name in veilrun.__all__:
        assert getattr(veilrun, name) is not None
    with pytest.raises(AttributeError):
        _ = veilrun.nothing


def test_no_document_has_a_hole():
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        text = path.read_text()
        assert not [word for word in ("TODO", "TBD", "MEASURED-", "XXX") if word in text], path


def test_every_error_is_in_the_tree_and_drawn_in_it():
    classes = [one for one in vars(errors).values() if isinstance(one, type)]
    assert all(issubclass(one, errors.VeilrunError) for one in classes)
    assert all(one.__name__ in (errors.__doc__ or "") for one in classes)


def test_an_error_of_a_part_is_named_in_the_tree_too():
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                bases = {ast.unparse(base).rpartition(".")[2] for base in node.bases}
                is_ours = any(one.endswith("Error") and hasattr(errors, one) for one in bases)
                assert not is_ours or node.name in (errors.__doc__ or ""), f"{path}: {node.name}"


@pytest.mark.parametrize("module", ["keys", "equivariant.codec", "equivariant.client", "cli"])
def test_what_needs_no_torch_loads_none(module: str):
    program = f"import sys, veilrun.{module}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
