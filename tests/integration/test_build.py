"""The package builds with and without a C compiler, and what is built works."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PARTS = ["src", "pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"]
PACKAGE = ROOT / "src" / "veilrun"
DATA = ["py.typed", *(f"bundled/prompter/{one.name}" for one in PACKAGE.glob("bundled/prompter/*"))]

# The same product, by whatever the package found, beside numpy's.
USE = """
import sys, numpy as np, veilrun
from veilrun.mpc import native, ring
assert veilrun.__file__.startswith(sys.argv[1]), veilrun.__file__
x = np.arange(2**32 - 600, 2**32, dtype=np.uint64).reshape(20, 30).astype(np.uint32)
assert (ring.matmul(x, x.T) == x @ x.T).all()
sys.stdout.write("numpy" if native.KERNEL is None else "native")
"""


@pytest.fixture
def tree(tmp_path):
    """A copy of what a build needs, as a fresh checkout has it."""
    copy = tmp_path / "checkout"
    copy.mkdir()
    ignore = shutil.ignore_patterns("*.so", "*.egg-info", "__pycache__")
    for name in PARTS:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=ignore)
        else:
            shutil.copy(ROOT / name, copy / name)
    return copy


def build(tree: Path, what: str, compiler: str | None) -> Path:
    """What pip calls to build: a wheel, an editable wheel or a source archive."""
    out = tree.parent / what
    out.mkdir()
    program = f"from setuptools import build_meta; build_meta.build_{what}({str(out)!r})"
    environment = {name: value for name, value in os.environ.items() if name != "CC"}
    if compiler is not None:
        environment["CC"] = compiler
    subprocess.run(
        [sys.executable, "-c", program], cwd=tree, env=environment, check=True, capture_output=True
    )
    (result,) = out.iterdir()
    return result


def implementation(folder: Path) -> str:
    """Which implementation the package in a folder uses, after a product that it got right."""
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    command = [sys.executable, "-c", USE, str(folder)]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return done.stdout


COMPILERS = [
    pytest.param(
        None,
        "native",
        marks=pytest.mark.skipif(not shutil.which("cc"), reason="needs a C compiler"),
        id="compiler",
    ),
    pytest.param("/nonexistent/cc", "numpy", id="no compiler"),
]


@pytest.mark.parametrize(("compiler", "expected"), COMPILERS)
def test_a_wheel(tree, compiler, expected):
    archive = zipfile.ZipFile(build(tree, "wheel", compiler))
    names = archive.namelist()
    assert {f"veilrun/{name}" for name in DATA} <= set(names)
    assert not [name for name in names if name.endswith((".c", ".h"))]
    assert [name for name in names if "_kernel" in name] or expected == "numpy"
    archive.extractall(tree.parent / "installed")
    assert implementation(tree.parent / "installed") == expected


@pytest.mark.parametrize(("compiler", "expected"), COMPILERS)
def test_an_editable_install(tree, compiler, expected):
    archive = zipfile.ZipFile(build(tree, "editable", compiler))
    (path_file,) = (name for name in archive.namelist() if name.endswith(".pth"))
    assert archive.read(path_file).decode().strip() == str(tree / "src")
    assert implementation(tree / "src") == expected


def test_a_source_archive_has_all_that_a_build_needs(tree):
    with tarfile.open(build(tree, "sdist", None)) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    native = {f"src/veilrun/mpc/_native/{one.name}" for one in PACKAGE.glob("mpc/_native/*.[ch]")}
    data = {f"src/veilrun/{name}" for name in DATA}
    assert native | data | {"setup.py", "pyproject.toml", "README.md", "LICENSE"} <= names
