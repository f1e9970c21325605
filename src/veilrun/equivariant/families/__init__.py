"""The architectures that have a private form, one table each.

To add one: write its table, add it to `FAMILIES`, and give the test suite a small
configuration of it; the suite plants an error in every row by itself.
"""

from __future__ import annotations

from typing import Final

from veilrun.equivariant.families.gemma import GEMMA2, GEMMA3
from veilrun.equivariant.families.gpt import GPT2, GPT_NEOX
from veilrun.equivariant.families.llama import LLAMA, QWEN3
from veilrun.equivariant.families.moe import MIXTRAL, QWEN3_MOE
from veilrun.equivariant.families.phi3 import PHI3
from veilrun.equivariant.families.table import Family
from veilrun.errors import UnsupportedModel

FAMILIES: Final[tuple[Family, ...]] = (
    LLAMA,
    QWEN3,
    GEMMA2,
    GEMMA3,
    PHI3,
    GPT2,
    GPT_NEOX,
    MIXTRAL,
    QWEN3_MOE,
)


def family_of(model_type: object) -> Family:
    """The family of a config.json's `model_type`, or UnsupportedModel with the known ones."""
    for family in FAMILIES:
        if model_type in family.model_types:
            return family
    known = ", ".join(sorted(name for family in FAMILIES for name in family.model_types))
    raise UnsupportedModel(f"no private form for model_type {model_type!r}; known: {known}")
