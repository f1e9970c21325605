"""veilrun: private inference of Hugging Face models on machines you do not trust.

>>> from pathlib import Path
>>> import veilrun
>>> key = veilrun.MasterKey.generate()
>>> veilrun.save_key(key, Path("my.key"), passphrase)                          # doctest: +SKIP
>>> made = veilrun.encrypt("gpt2", Path("out"), key, kits=Path("my.key.client"))  # doctest: +SKIP

Names load when first used: a verifier or a proxy never imports torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from veilrun.equivariant.agreement import Agreement, measure
    from veilrun.equivariant.client import ClientKit, find_client_kit
    from veilrun.equivariant.codec import Codec
    from veilrun.equivariant.compile import Encryption, encrypt
    from veilrun.errors import VeilrunError
    from veilrun.keys import MasterKey, load_key, save_key

__version__ = "0.1.0"

__all__ = [
    "Agreement",
    "ClientKit",
    "Codec",
    "Encryption",
    "MasterKey",
    "VeilrunError",
    "encrypt",
    "find_client_kit",
    "load_key",
    "measure",
    "save_key",
]

_HOMES = {
    "veilrun.equivariant.agreement": ("Agreement", "measure"),
    "veilrun.equivariant.client": ("ClientKit", "find_client_kit"),
    "veilrun.equivariant.codec": ("Codec",),
    "veilrun.equivariant.compile": ("Encryption", "encrypt"),
    "veilrun.errors": ("VeilrunError",),
    "veilrun.keys": ("MasterKey", "load_key", "save_key"),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(home), name)
    raise AttributeError(f"module 'veilrun' has no attribute {name!r}")
