"""Tapes: a party's local work of one inference, recorded once and then done by the native kernel.

    steps     what a step is, in bytes
    cells     where values lie in a tape's memory: views, as numpy has them
    recorder  writes the steps of a network; it is the `Arithmetic` of a party with no values
    tape      runs what was recorded, on the material and the frames of one inference

Between two rounds a party does some ten small things. Called from Python one by one they take as
long again as the work itself, where texts are short; from a tape they take no more than it. The
gates are the same, and so are the results, to the last bit.
"""
