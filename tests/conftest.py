"""Fixtures that every test may use."""

from __future__ import annotations

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real models and data beside the checkout; without it the test is skipped."""
    if not SHARED.is_dir():
        pytest.skip("needs the folder of real models and data (../shared), which is not here")
    return SHARED


@pytest.fixture(scope="session")
def stories(shared: Path) -> Path:
    """stories260K: a real pretrained Llama-architecture checkpoint with its tokenizer."""
    return shared / "models" / "stories260K"
