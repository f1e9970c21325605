"""Attestation: what machine is that, and does it run what it should? Offline, for every vendor.

Adversary: the operator's software and network. Not covered: attacks on the hardware itself
(interposers on memory buses have forged quotes of every CPU vendor), and what correct software
does with what it sees.

In dependency order:

* `reading`, `reasons`, `checks`: bytes; names of failures; steps of a verification.
* `claims`: what verified evidence says, in one vocabulary.
* `pins`, `endorsements`, `chains`: vendors' roots; what comes from files; certificate chains.
"""
