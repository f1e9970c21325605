"""NVIDIA GPUs and NVSwitches: SPDM reports, device certificates, reference integrity manifests.

* `report`: one device's report. `evidence`: the files it comes in.
* `manifest`: what firmware and drivers should measure as. `references`: does this device?
* `authenticate`: all of it, in order. `service`: tokens of the vendor's own verifier.
"""
