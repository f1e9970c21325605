"""What comes with the package: a small model, measured runs, and a tuner; all made by us."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path


def prompter() -> Path:
    """The folder of the prompter, the model behind `veilrun demo`; its MODEL_CARD.md says more."""
    return Path(str(files(__name__) / "prompter"))


def runs() -> Path:
    """Measured runs, and the tuner that was trained on them; README.md there says more."""
    return Path(str(files(__name__) / "runs"))
