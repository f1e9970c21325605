"""The gates: one file each, and in each the equations once and then every machine's part of them.

The same four functions in every file:

    trace   what the gate will need: correlations, openings, shapes (public)
    deal    the dealer's part, offline: knows masks and weights
    run     a party's part, online: knows its shares and what was opened; in the steps of
            `arithmetic`
    plain   the twin's part: the integer itself, with the same rounding

Adversary: semi-honest, one of three parties. What a party sees is its own streams, corrections
that are masked by the other's stream, and openings that are masked by a mask it knows half of:
each uniform on its own.

Costs are those of `COSTS` in `gates.costs`; a test holds every gate to its line there.
"""
