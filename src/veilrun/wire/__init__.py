"""Bytes between machines: canonical, versioned, no pickle. Decode returns a value or raises.

* `generate`: the node protocol, tokens in and tokens out (JSON, as vLLM speaks it).
* `tensors`: length-checked frames that carry named tensors.
"""
