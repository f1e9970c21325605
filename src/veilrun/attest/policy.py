"""What a caller accepts: small rules, combined by `AllOf`, about evidence that is authentic.

A rule looks at the whole machine and gives a `Check` for each thing it compared. All rules are
tried. What the caller demands at run time (`Demands`) is compared where it is given, whatever the
policy says; a policy may insist that it is given.

* `rules`: about each piece of evidence. `machine_rules`: about the pieces together.
* `policy_file`: a policy from TOML.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Protocol

from veilrun.attest.binding import NONCE_BYTES, Binding
from veilrun.attest.checks import Check
from veilrun.attest.claims import Claims, Kind
from veilrun.attest.reasons import Reason
from veilrun.errors import UsageError

MACHINE: Final = "machine"
"""What checks about no single piece of evidence are about."""

GPU_KINDS: Final = frozenset({Kind.NVIDIA_GPU, Kind.NVIDIA_SWITCH})
_HASH_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class Demands:
    """What the caller demands of this evidence; None: nothing.

    nonce: 8 to 64 bytes that the caller chose for it. tls_key_sha256: of the public key
    (SubjectPublicKeyInfo, DER) at the other end of the connection. weights_root: 32 bytes.
    """

    nonce: bytes | None = None
    tls_key_sha256: bytes | None = None
    weights_root: bytes | None = None

    def __post_init__(self) -> None:
        if self.nonce is not None and len(self.nonce) not in NONCE_BYTES:
            raise UsageError(f"a nonce has 8 to 64 bytes, not {len(self.nonce)}")
        for name, value in (("TLS key", self.tls_key_sha256), ("weights", self.weights_root)):
            if value is not None and len(value) != _HASH_BYTES:
                raise UsageError(f"{name}: a SHA-256 has 32 bytes, not {len(value)}")


@dataclass(frozen=True, slots=True)
class Piece:
    """One device's claims. label: its name in the verdict. source: the bytes it came in."""

    label: str
    claims: Claims
    source: bytes = b""


@dataclass(frozen=True, slots=True)
class Machine:
    """All that is known of one machine when the rules are tried.

    binding: what it states that its evidence is about.
    """

    pieces: Sequence[Piece]
    demands: Demands
    at: datetime
    binding: Binding | None = None

    def all_claims(self) -> Iterator[tuple[str, Claims]]:
        """Every claim with the label of its piece."""
        for piece in self.pieces:
            for claims in with_nested(piece.claims):
                yield piece.label, claims

    def of_kind(self, kind: Kind) -> list[tuple[str, Claims]]:
        """Those of one kind."""
        return [(label, one) for label, one in self.all_claims() if one.kind is kind]

    def hosts(self) -> list[Piece]:
        """Evidence that can carry a binding: of CPUs and TPMs. GPUs carry a nonce only."""
        return [one for one in self.pieces if one.claims.kind not in GPU_KINDS]

    def gpus(self) -> list[Piece]:
        """Evidence of GPUs and switches."""
        return [one for one in self.pieces if one.claims.kind in GPU_KINDS]


class Rule(Protocol):
    """One thing that a caller asks for."""

    def checks(self, machine: Machine) -> Iterator[Check]:
        """What was compared, each with its outcome."""


@dataclass(frozen=True, slots=True)
class AllOf:
    """All of some rules; none at all is an error, since that would accept anything."""

    rules: tuple[Rule, ...]

    def __post_init__(self) -> None:
        if not self.rules:
            raise UsageError("a policy without rules would accept anything")

    def checks(self, machine: Machine) -> Iterator[Check]:
        for rule in self.rules:
            yield from rule.checks(machine)


def with_nested(claims: Claims) -> Iterator[Claims]:
    """The claims, and those of the evidence that they rest on."""
    waiting = [claims]
    while waiting:
        one = waiting.pop()
        yield one
        waiting.extend(one.nested)


def passed(about: str, name: str, detail: str = "") -> Check:
    """A rule that holds."""
    return Check(about, name, "passed", detail=detail)


def failed(about: str, name: str, reason: Reason, detail: str) -> Check:
    """A rule that does not."""
    return Check(about, name, "failed", reason, detail)
