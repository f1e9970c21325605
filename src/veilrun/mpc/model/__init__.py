"""The models that run on secret shares, in the clear: loading, reference, calibration.

* `families`: how each family spells its parameters; what is refused.
* `tensors`: bytes of a checkpoint as float32.
* `architecture`: one canonical form for all families, and its public shape.
* `reference`: the forward pass in numpy.
* `calibration`: the ranges of every intermediate value over real sentences.

Nothing here is a protocol, and nothing needs torch.
"""
