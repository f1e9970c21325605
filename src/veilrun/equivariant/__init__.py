"""Equivariant encryption: a key turns a checkpoint into one that computes on encrypted tokens.

Adversary: an observer of the wire; a host without the base weights. Not covered: a host with
the public base weights, and frequency analysis of ids under a long-lived key (SECURITY.md).
Source: Buban et al., arXiv 2502.01013; the algebra of spaces and groups is our own reading.

In dependency order:

* `codec`: plain ids to cipher ids and back. All that a running proxy needs; no torch.
* `client`: what stays on the trusted side beside the key file.
* `maps`: linear maps on one axis: permutations, blocks, scales, a reflection.
* `groups`: a secret element of each group.
* `spaces`: the model's spaces, and which group each one has.
* `families`: one table per architecture: parameter -> the spaces of its axes.
* `plan`: a table and a checkpoint become jobs, or every unknown parameter is named.
* `transform`: one tensor under its job.
* `compile`: all of it, streamed shard by shard.
* `agreement`: plain against encrypted model on real text.
"""
