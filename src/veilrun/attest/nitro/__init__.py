"""AWS Nitro Enclaves: attestation documents of the Nitro Security Module.

* `cbor`: CBOR without surprises. `document`: the document and its signature envelope (COSE).
* `authenticate`: is it of a genuine module, and what does it say?
"""
