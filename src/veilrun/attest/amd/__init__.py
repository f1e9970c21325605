"""AMD SEV-SNP: attestation reports and the chips' endorsement keys.

* `report`: the report itself. `evidence`: what it comes in.
* `processors`: products, their roots, and how each writes its firmware versions.
* `endorsement_key`: certificates of VCEKs and VLEKs. `authenticate`: all of it, in order.
"""
