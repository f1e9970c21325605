"""Evidence of the machine that this runs on, made for one nonce, TLS key and weights root.

* `machine`: all of it as a bundle. `tpm`, `tsm`, `nvidia`: from whom it comes.

The only part of `attest` that talks to devices and starts programs.
"""
