"""The untrusted side: an encrypted checkpoint, an engine, and a few HTTP paths.

* `engine`: what the surface needs of an engine; `transformers_engine` (continuous batching),
  `static_engine` (one batch at a time) and `vllm_engine` are three.
* `tuned`: from an arm to an engine; `trials`, `collecting`, `probing`, `tuning`: measuring arms.
* `server`: the paths; `exchange`: one request being answered; `service`: from start to signal.
* `folder`: what a node must not hold. `attestation`: evidence of the machine.

Nothing here imports a key, a codec or a tokenizer; `lint-imports` checks it.
"""
