"""Small models for the node's tests, made on the spot: random Llamas in encrypted-style folders.

torch is imported where it is needed: tests of the HTTP surface do without.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from veilrun.checkpoint.folder import CONFIG_FILE, SINGLE_FILE, Checkpoint
from veilrun.checkpoint.merkle import weights_root
from veilrun.wire.generate import Choice, GenerateRequest, SamplingParams
from veilrun.wire.manifest import MANIFEST_FILE, Manifest, encode_manifest

VOCAB_SIZE = 96
END_ID = 2
FINGERPRINT = "0123456789abcdef" * 2
GREEDY = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)


def manifest_of(folder: Path, vocab_size: int) -> Manifest:
    """What a node that serves the folder wants its manifest to be: with the weights' own root."""
    with Checkpoint(folder) as weights:
        return Manifest("ee", FINGERPRINT, vocab_size, weights_root(weights).hex())


def write_manifest(folder: Path, vocab_size: int) -> None:
    """The manifest beside the weights, if there are any; else one with a made-up root."""
    manifest = Manifest("ee", FINGERPRINT, vocab_size, "ab" * 32)
    if (folder / SINGLE_FILE).exists():
        manifest = manifest_of(folder, vocab_size)
    (folder / MANIFEST_FILE).write_bytes(encode_manifest(manifest))


def write_weights(folder: Path, n_tensors: int = 3) -> Path:
    """A checkpoint for everything that reads weights without running them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_FILE).write_text("{}")
    tensors = {f"t{i}": np.full(4, i, np.float32) for i in range(n_tensors)}
    save_file(tensors, folder / SINGLE_FILE)
    return folder


def write_tiny_llama(folder: Path, *, seed: int = 0, max_len: int = 256) -> Path:
    """A two-layer Llama whose random weights are large enough for varied greedy text."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=max_len,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=END_ID,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    write_manifest(folder, VOCAB_SIZE)
    return folder


def plain_model(folder: Path) -> Any:
    import torch
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def plain_greedy(model: Any, prompt: tuple[int, ...], n_tokens: int) -> list[int]:
    """The oracle: the whole sequence again for every token, no cache, no batch."""
    import torch

    ids = list(prompt)
    with torch.no_grad():
        for _ in range(n_tokens):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


async def collect(engine: Any, request: GenerateRequest) -> dict[int, Choice]:
    """Every answer of a request, put together from its pieces."""
    answers: dict[int, Choice] = {}
    async for piece in engine.generate(request):
        sofar = answers.get(piece.index, Choice(piece.index, ()))
        assert sofar.finish_reason is None, "a piece after the end"
        logprobs = None
        if piece.logprobs is not None:
            logprobs = (sofar.logprobs or ()) + piece.logprobs
        answers[piece.index] = Choice(
            piece.index,
            sofar.token_ids + piece.token_ids,
            piece.finish_reason,
            piece.stop_reason,
            logprobs,
        )
    assert all(one.finish_reason is not None for one in answers.values())
    return answers
