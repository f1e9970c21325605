"""Small frozen value types shared by every part. No I/O, no heavy imports."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Mode:
    """One row of the guarantee ladder: what a mode protects, and from whom.

    name: the word used on the command line and in the `x-veilrun-mode` header.
    node_gets: what the untrusted machine holds.
    stands_against: the adversary it is meant for.
    does_not_stop: what it leaves open. Never shortened for display.
    """

    name: str
    node_gets: str
    stands_against: str
    does_not_stop: str


EE = Mode(
    name="ee",
    node_gets="an encrypted checkpoint and encrypted token ids",
    stands_against=(
        "an observer of the wire between proxy and node; "
        "a host that has no copy of the base weights"
    ),
    does_not_stop=(
        "a host that holds the public base weights (an exact transform of a public checkpoint "
        "can be matched to it); frequency analysis of ids under a long-lived key"
    ),
)
