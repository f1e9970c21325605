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
        "an observer of the wire between proxy and node (TLS); a casual look at memory, logs and "
        "disks of a machine that has no copy of the base weights"
    ),
    does_not_stop=(
        "a host that holds the public base weights (our attacks read all tokens, under every "
        "strength of key and with noise); whoever reads the ids of a few thousand tokens under one "
        "key (their order gives the permutation away, without any weights)"
    ),
)

MPC = Mode(
    name="mpc",
    node_gets=(
        "dealer: the length of a text and when it comes; assistant: half of each value, which is "
        "random on its own; client: the answer, and no weight but those of an embedding made public"
    ),
    stands_against="any one of the three parties that follows the protocol but looks at all it has",
    does_not_stop=(
        "two parties that pool what they have (each pair together learns text or weights); a party "
        "that deviates from the protocol (wrong answers, not noticed); what the answers themselves "
        "betray of the model; all three on one machine, which protects nothing"
    ),
)
