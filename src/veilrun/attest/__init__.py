"""Attestation: what machine is that, and does it run what it should? Offline, for every vendor.

Adversary: the operator's software and network. Not covered: attacks on the hardware itself
(interposers on memory buses have forged quotes of every CPU vendor), and what correct software
does with what it sees.

In dependency order:

* `reading`, `reasons`, `checks`: bytes; names of failures; steps of a verification.
* `claims`, `pins`, `endorsements`: what verified evidence says, in one vocabulary; vendors' roots;
  what comes from files.
* `certificates`, `chains`, `signatures`: X.509 from outside; chains to a pinned root.
* `event_logs`, `runtime_events`, `hcl`, `dstack`: logs and containers that vendors share.
* `intel`, `amd`, `nvidia`, `nitro`, `tpm`: a vendor's formats, and `authenticate`: is it genuine?
* `kinds`, `formats`, `bundle`, `binding`, `files`: which file is what; evidence that travels
  together, and what it is bound to.
* `policy`, `rules`, `machine_rules`, `policy_file`: what is accepted.
* `trust`, `ear`, `verdict`: one verdict over all evidence.
* `live`: asks this machine's own devices for evidence; the only part that does.
"""
