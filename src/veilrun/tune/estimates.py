"""How long the parts of a request should take, by arithmetic: features that carry across models.

A layer of 768 on one machine is like a layer of 384 on another that is four times slower. So a
selector gets, beside the bare numbers, what they come to: a token's step is made of small
operations and of weights to read, a prompt of products. All are rough, none is fitted; a learner
only needs them to rise and fall with the truth.
"""

from __future__ import annotations

import math

from veilrun.tune.machine import Machine
from veilrun.tune.shape import Shape
from veilrun.tune.workload import Workload
from veilrun.tune.works import STEPS_PER_LAYER


def estimates(shape: Shape, machine: Machine, workload: Workload) -> dict[str, float]:
    """Logarithms (base 2) of times and of their ratios.

    step: one token of one request. small_share: of that, what is not reading weights, over what is.
    prefill_over_decode: reading a prompt over making an answer, one request alone.
    reuse_gain, guess_gain, draft_gain: time of a request over what it would be with no shared
        prefix to compute, or with every token free that the answer so far or the draft tells.
    batch_gain: steps of all requests one by one over steps of `concurrency` together.
    """
    n_weights = shape.n_body_params + shape.n_head_params
    small_s = (shape.n_layers + 1) * STEPS_PER_LAYER * machine.step_us / 1e6
    read_s = 4 * n_weights / (machine.copy_gbps * 1e9)
    step_s = small_s + read_s
    product_s = 2 * shape.n_body_params / (machine.gflops_all * 1e9)
    prefill_s = small_s + workload.prompt_tokens * product_s
    decode_s = workload.answer_tokens * step_s
    whole_s = prefill_s + decode_s
    n_again = workload.n_requests - min(workload.n_prefixes, workload.n_requests)
    reused = workload.prefix_tokens * n_again / workload.n_requests
    greedy_tokens = (1 - workload.sampled) * workload.answer_tokens
    guessable, drafted = (s * greedy_tokens for s in (workload.repetition, workload.agreement))
    together = min(workload.concurrency, workload.n_requests)
    together_s = max(step_s, together * product_s) + together * prefill_s / workload.answer_tokens
    return {
        "estimate_step": math.log2(step_s),
        "estimate_small_share": math.log2(small_s / read_s),
        "estimate_prefill_over_decode": math.log2(prefill_s / decode_s),
        "estimate_reuse_gain": math.log2(whole_s / (whole_s - reused * product_s)),
        "estimate_guess_gain": math.log2(whole_s / (whole_s - 0.9 * guessable * step_s)),
        "estimate_draft_gain": math.log2(whole_s / (whole_s - 0.8 * drafted * step_s)),
        "estimate_batch_gain": math.log2(together * whole_s / workload.answer_tokens / together_s),
        "estimate_load": math.log2(1 + workload.rate_per_s * whole_s),
    }
