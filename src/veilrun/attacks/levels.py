"""What an attacker holds. Every number of the red team names one of these levels.

The attacker knows veilrun, its file formats and the algorithm, and lacks the key (Kerckhoffs).
A higher level holds what the one before it holds, and more; `fine-tune` and `two-hosts` stand
beside `pairs`, not above it.
"""

from __future__ import annotations

from enum import StrEnum


class Level(StrEnum):
    """Who attacks."""

    WIRE = "wire"
    HOST = "host"
    BASE = "host+base"
    PAIRS = "host+base+pairs"
    FINE_TUNE = "fine-tune"
    TWO_HOSTS = "two-hosts"

    @property
    def holds(self) -> str:
        """What the attacker has, for people."""
        return _HOLDS[self]

    @property
    def includes(self) -> tuple[Level, ...]:
        """The levels whose attacks this attacker can make too; the last is its own."""
        return _INCLUDES[self]


_HOLDS = {
    Level.WIRE: (
        "cipher ids of all traffic (as someone reads them where TLS ends: a log, a load balancer), "
        "and public text; who sees TLS records alone has sizes and times only"
    ),
    Level.HOST: "the encrypted checkpoint and all its traffic; no copy of the base weights",
    Level.BASE: "the encrypted checkpoint, its traffic, and the public weights it was made from",
    Level.PAIRS: "that, and n known pairs of a token and its cipher id",
    Level.FINE_TUNE: (
        "the encrypted checkpoint of a secret fine-tune, and the public weights it began from"
    ),
    Level.TWO_HOSTS: (
        "two encrypted copies of one model under different keys (two nodes that collude, or one "
        "that was given a re-keyed copy), and the public weights"
    ),
}

_INCLUDES = {
    Level.WIRE: (Level.WIRE,),
    Level.HOST: (Level.WIRE, Level.HOST),
    Level.BASE: (Level.WIRE, Level.HOST, Level.BASE),
    Level.PAIRS: (Level.WIRE, Level.HOST, Level.BASE, Level.PAIRS),
    Level.FINE_TUNE: (Level.WIRE, Level.HOST, Level.FINE_TUNE),
    Level.TWO_HOSTS: (Level.WIRE, Level.HOST, Level.BASE, Level.TWO_HOSTS),
}
