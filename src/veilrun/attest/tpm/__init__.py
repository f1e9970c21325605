"""TPM 2.0: quotes over platform registers, of hardware, of clouds' virtual TPMs, of software ones.

* `quote`: what a TPM signs, and its signature. `evidence`: the files that quotes come in.
* `keys`: whose key has signed. `authenticate`: is all of that genuine.
"""
