"""From an arm of the tuner to an engine that runs it: the built-in ones, or vLLM's options.

What an engine has no option for is refused by name, never left out silently.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from veilrun.errors import UsageError
from veilrun.node.engine import Engine
from veilrun.node.model_run import Loader, ModelRun
from veilrun.node.static_engine import StaticEngine, StaticSettings
from veilrun.node.transformers_engine import TransformersEngine, TransformersSettings
from veilrun.node.vllm_process import VllmOptions
from veilrun.tune.arms import Arm, EngineName, Situation

_LOOKUP = {
    "method": "ngram",
    "num_speculative_tokens": 8,
    "prompt_lookup_max": 2,
    "prompt_lookup_min": 1,
}


def run_of(arm: Arm, *, device: str = "auto", dtype: str = "auto") -> ModelRun:
    """How the model's own arithmetic runs under this arm: what `model_run.load` makes it for."""
    return ModelRun(device, dtype, arm.attention, arm.weights, arm.n_threads, arm.compiled)


def engine_for(
    arm: Arm,
    folder: Path,
    *,
    max_model_len: int | None = None,
    device: str = "auto",
    dtype: str = "auto",
    draft: Path | None = None,
    load: Loader | None = None,
) -> Engine:
    """The built-in engine that runs this arm; not started.

    draft: the smaller model's folder, for arms that guess with one; others leave it alone.
    load: gives a shared model that `model_run.load` made for the same device, dtype, weights and
        `compiled`; the engine sets its attention.

    Raises:
        UsageError: the arm's parts conflict, or it does not suit this model or machine.
    """
    reasons = [*_situation(arm, "transformers", draft).objections(arm)]
    if arm.batching == "continuous" and arm.compiled:
        reasons.append("the built-in engine's continuous batching does not run compiled models")
    _refuse(arm, reasons)
    run = run_of(arm, device=device, dtype=dtype)
    if arm.batching == "continuous":
        settings = TransformersSettings(
            max_running=arm.max_running,
            max_model_len=max_model_len,
            max_batch_tokens=arm.chunk_tokens,
            device=device,
            dtype=dtype,
            attention=arm.attention,
            weights=arm.weights,
            n_threads=arm.n_threads,
        )
        return TransformersEngine(folder, settings, load)
    static = StaticSettings(
        max_running=arm.max_running,
        max_model_len=max_model_len,
        prefix_cache=arm.prefix_cache,
        speculation=arm.speculation,
        draft=draft if arm.speculation == "draft" else None,
        kv_cache=arm.kv_cache,
        run=run,
    )
    return StaticEngine(folder, static, load)


def vllm_options(arm: Arm, *, max_model_len: int | None = None, dtype: str = "auto") -> VllmOptions:
    """vLLM's options for this arm.

    Raises:
        UsageError: vLLM cannot run it; the message says why.
    """
    reasons = [*_situation(arm, "vllm", None).objections(arm)]
    if arm.n_threads is not None:
        reasons.append("vLLM's threads are set where it is started")
    _refuse(arm, reasons)
    arguments = ["--enable-prefix-caching" if arm.prefix_cache else "--no-enable-prefix-caching"]
    if arm.chunk_tokens is not None:
        arguments.append(f"--max-num-batched-tokens={max(arm.chunk_tokens, arm.max_running)}")
    if arm.speculation == "prompt-lookup":
        arguments.append(f"--speculative-config={json.dumps(_LOOKUP, separators=(',', ':'))}")
    if not arm.compiled:
        arguments.append("--enforce-eager")
    return VllmOptions(
        max_model_len=max_model_len,
        max_num_seqs=arm.max_running,
        dtype=dtype,
        extra_arguments=tuple(arguments),
    )


def _situation(arm: Arm, engine: EngineName, draft: Path | None) -> Situation:
    """As far as an engine knows: whether there are that many cores is not its to refuse."""
    n_cores = max(2, arm.n_threads or 0)
    return Situation(n_cores, engine=engine, has_draft=draft is not None)


def _refuse(arm: Arm, reasons: Sequence[str]) -> None:
    if reasons:
        raise UsageError(f"arm {arm.name} cannot run here: {'; '.join(reasons)}")
