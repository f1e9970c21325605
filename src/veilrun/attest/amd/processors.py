"""AMD's server processors: their roots, and the versions of firmware that a TCB is made of.

A TCB has eight bytes, one for each component; which is which depends on the product. A chip's key
is derived from the TCB that its host reports, and its certificate has the same versions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from veilrun.attest.pins import AMD
from veilrun.errors import DecodeError

_FIRST_TCB: Final = {"bootloader": 0, "tee": 1, "snp": 6, "microcode": 7}
_TURIN_TCB: Final = {"fmc": 0, "bootloader": 1, "tee": 2, "snp": 3, "microcode": 7}


@dataclass(frozen=True)
class Product:
    """models: (family, models) that are this product. tcb: component -> its byte."""

    name: str
    models: tuple[tuple[int, range], ...]
    tcb: Mapping[str, int]

    def includes(self, processor: tuple[int, int]) -> bool:
        """Whether a family and model are this product."""
        family, model = processor
        return any(family == one and model in models for one, models in self.models)

    def versions(self, tcb: bytes) -> dict[str, int]:
        """The components of a TCB; all other bytes are zero."""
        if any(byte for at, byte in enumerate(tcb) if at not in self.tcb.values()):
            raise DecodeError(f"TCB {tcb.hex()} has more components than {self.name} has")
        return {name: tcb[at] for name, at in self.tcb.items()}


PRODUCTS: Final = (
    Product("Milan", ((0x19, range(0x10)),), _FIRST_TCB),
    # With Bergamo and Siena, which have Genoa's root.
    Product("Genoa", ((0x19, range(0x10, 0x20)), (0x19, range(0xA0, 0xB0))), _FIRST_TCB),
    Product("Turin", ((0x1A, range(0x20)),), _TURIN_TCB),
)


def product_of(root: x509.Certificate) -> Product:
    """The product whose pinned root this is."""
    digest = root.fingerprint(hashes.SHA256()).hex()
    names = {pin.sha256: pin.name for pin in AMD}
    return next(one for one in PRODUCTS if names[digest] == f"AMD ARK-{one.name}")
