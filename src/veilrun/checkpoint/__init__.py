"""Hugging Face checkpoints: open, stream and write safetensors; weight digests, Merkle root.

* `format`: one safetensors file, read and written tensor by tensor without mapping it.
* `folder`: a checkpoint folder: config files and one or many shards.
* `source`: a hub id or a folder becomes a folder.
* `merkle`: the digest of a model's weights, whatever the sharding.

Nothing here knows a key or needs torch: tensors are bytes with a dtype and a shape.
"""
