"""The models that run on secret shares, in the clear: loading, reference, calibration.

* `families`: how each family spells its parameters; what is refused.
* `tensors`: bytes of a checkpoint as float32.
* `architecture`: one canonical form for all families, and its public shape.
* `reference`: the forward pass in numpy.
* `calibration`: the ranges of every intermediate value over real sentences.
* `grids`, `quantise`, `binary`: look-up grids; a float model as integers, w16a8 and w1a4.
* `quantised`, `public`: the model in integers; the part of it that all three parties know.
* `files`, `entry`: its folder on disk; a sentence as what enters the network.
* `convert`: all of it, from a checkpoint to a folder that was tried.

Nothing here is a protocol, and nothing needs torch.
"""
