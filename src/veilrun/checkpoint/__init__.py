"""Open, stream and write safetensors checkpoints; weight digests and Merkle root."""
