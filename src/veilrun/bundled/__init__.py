"""Models that come with the package: small enough for a wheel, trained by us."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path


def prompter() -> Path:
    """The folder of the prompter, the model behind `veilrun demo`; its MODEL_CARD.md says more."""
    return Path(str(files(__name__) / "prompter"))
