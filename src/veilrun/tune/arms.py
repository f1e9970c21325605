"""What the tuner chooses from: ways to run one model, each a value that any engine can read.

An arm says how requests are batched, what is remembered, what is guessed ahead, and how the
arithmetic runs. It names no engine: `node.tuned` turns an arm into the built-in engines' settings
or into vLLM's options, where vLLM has such an option.

An arm has three things to say of itself before anything runs:

* `conflicts`: parts that do not go together, whatever the machine;
* `Situation.objections`: what the arm needs that this node does not have or its owner forbids;
* `leaks`: what another user, or the machine's owner, learns because of it and not otherwise.

Invariant: every arm in `ARMS` is free of conflicts, and no two have the same name or settings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Literal

from veilrun.errors import UsageError

Batching = Literal["static", "continuous"]
Speculation = Literal["none", "prompt-lookup", "draft"]
Weights = Literal["stored", "int8"]
Attention = Literal["sdpa", "eager"]
EngineName = Literal["transformers", "vllm"]


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to run a model.

    batching: "static" takes what waits, up to `max_running`, and runs it to its end as one padded
        batch; "continuous" lets requests in and out between tokens.
    max_running: requests computed together.
    chunk_tokens: tokens per forward pass; longer prompts are read in such pieces, between other
        requests' tokens (chunked prefill; continuous batching only). None: the engine's default.
    kv_cache: keys and values of past tokens are kept; without, all are computed again each token.
    prefix_cache: what earlier prompts of the same salt began with is not computed again.
    speculation: guess tokens ahead and check several at a time, by n-grams of the prompt and
        answer so far, or by a smaller model. The answer stays the same.
    weights: "int8" rounds them and every layer's input to 8 bits: answers differ a little.
    compiled: the model goes through torch.compile first, which takes up to a minute.
    n_threads: of the arithmetic; None: one per core.
    """

    name: str
    batching: Batching
    max_running: int = 1
    chunk_tokens: int | None = None
    kv_cache: bool = True
    prefix_cache: bool = False
    speculation: Speculation = "none"
    weights: Weights = "stored"
    compiled: bool = False
    n_threads: int | None = None
    attention: Attention = "sdpa"

    @property
    def is_exact(self) -> bool:
        """Whether a greedy answer is that of the stored weights, up to rounding of sums."""
        return self.weights == "stored"

    def conflicts(self) -> tuple[str, ...]:
        """Why the parts do not go together; empty if they do."""
        rules = {
            "padding hides where a shared prefix ends: a prefix cache takes requests one by one": (
                self.prefix_cache and self.batching == "static" and self.max_running > 1
            ),
            "padding hides what was guessed right: guessing ahead takes requests one by one": (
                self.speculation != "none" and self.batching == "static" and self.max_running > 1
            ),
            "a prefix cache and guessing ahead need kept keys and values": (
                not self.kv_cache and (self.prefix_cache or self.speculation != "none")
            ),
            "continuous batching always keeps keys and values": (
                not self.kv_cache and self.batching == "continuous"
            ),
            "prompts are read in pieces by continuous batching only": (
                self.chunk_tokens is not None and self.batching == "static"
            ),
            "8-bit layers and a compiled model's do not combine": (
                self.weights == "int8" and self.compiled
            ),
        }
        return tuple(reason for reason, holds in rules.items() if holds)

    def leaks(self) -> tuple[str, ...]:
        """What this arm lets others learn beyond what every node's owner sees anyway."""
        return tuple(self._leaks())

    def _leaks(self) -> Iterator[str]:
        if self.prefix_cache:
            yield (
                "time to first token tells who sends a prompt whether another of the same salt "
                "began alike; never shared across salts, so keep one salt per user"
            )
        if self.speculation != "none":
            yield (
                "the pace of an answer tells whoever watches the connection how well its tokens "
                "could be guessed (repetition, or likeness to the draft)"
            )
        if self.batching == "continuous" and self.max_running > 1:
            yield "the pace of an answer tells a user how many others are served at that moment"
        if self.weights == "int8" and self.max_running > 1:
            yield (
                "inputs are rounded on one scale for all that run together, so an answer shifts a "
                "little with others' requests"
            )
        if self.batching == "static" and self.max_running > 1:
            yield "an answer waits for the longest in its batch: its length shows to the others"

    def describe(self) -> str:
        """The arm in a sentence, for people and for selectors that read."""
        parts = [f"{self.batching} batching of up to {self.max_running} requests"]
        if self.chunk_tokens:
            parts.append(f"prompts in pieces of {self.chunk_tokens} tokens")
        parts.append("cached keys and values" if self.kv_cache else "no cache of keys and values")
        if self.prefix_cache:
            parts.append("a prefix cache per salt")
        if self.speculation == "prompt-lookup":
            parts.append("tokens guessed by prompt lookup")
        if self.speculation == "draft":
            parts.append("tokens guessed by a draft model")
        parts.append("8-bit weights" if self.weights == "int8" else "weights as stored")
        if self.compiled:
            parts.append("compiled")
        threads = "all threads" if self.n_threads is None else f"threads: {self.n_threads}"
        return ", ".join([*parts, f"{self.attention} attention", threads])


@dataclass(frozen=True, slots=True)
class Situation:
    """What a node has, and what its owner allows.

    n_cores: for arms that name a number of threads.
    has_draft: a smaller model with the same (encrypted) vocabulary lies at hand.
    can_compile: there is a C++ compiler.
    on_cpu: 8-bit layers are for CPUs.
    exact: refuse arms whose greedy answers differ from the stored weights'.
    one_salt_per_user: clients send a salt; without it a prefix cache has nothing to go by.
    """

    n_cores: int
    engine: EngineName = "transformers"
    has_draft: bool = False
    can_compile: bool = True
    on_cpu: bool = True
    exact: bool = False
    one_salt_per_user: bool = True

    def objections(self, arm: Arm) -> tuple[str, ...]:
        """Why this arm may not run here; empty if it may."""
        reasons = {
            "it names more threads than there are cores": (arm.n_threads or 1) > self.n_cores,
            "one thread is all there is: it equals another arm": (
                arm.n_threads is not None and self.n_cores == 1
            ),
            "it needs a draft model": arm.speculation == "draft" and not self.has_draft,
            "it needs a C++ compiler": arm.compiled and not self.can_compile,
            "8-bit layers run on a CPU only": arm.weights == "int8" and not self.on_cpu,
            "its answers differ from the stored weights'": self.exact and not arm.is_exact,
            "a prefix cache is refused across keys: it needs a salt from each user": (
                arm.prefix_cache and not self.one_salt_per_user
            ),
        }
        lacks = _BUILT_IN_LACKS if self.engine == "transformers" else _VLLM_LACKS
        return (
            *arm.conflicts(),
            *(reason for reason, holds in reasons.items() if holds),
            *(reason for reason, test in lacks.items() if test(arm)),
        )


_BUILT_IN_LACKS: Final[dict[str, Callable[[Arm], bool]]] = {
    "the built-in engine's continuous batching has no salted prefix cache": (
        lambda arm: arm.prefix_cache and arm.batching == "continuous"
    ),
    "the built-in engine guesses ahead for one request at a time": (
        lambda arm: arm.speculation != "none" and arm.batching == "continuous"
    ),
}
_VLLM_LACKS: Final[dict[str, Callable[[Arm], bool]]] = {
    "vLLM batches continuously only": lambda arm: arm.batching == "static",
    "vLLM gets its weights as they are stored": lambda arm: arm.weights == "int8",
    "vLLM's threads are set where it is installed": lambda arm: arm.n_threads is not None,
    "vLLM picks its attention itself": lambda arm: arm.attention == "eager",
}


ARMS: Final = (
    Arm("continuous-16", "continuous", 16),
    Arm("continuous-4", "continuous", 4),
    Arm("continuous-16-chunk-64", "continuous", 16, chunk_tokens=64),
    Arm("continuous-16-int8", "continuous", 16, weights="int8"),
    Arm("continuous-16-one-thread", "continuous", 16, n_threads=1),
    Arm("single", "static"),
    Arm("single-no-cache", "static", kv_cache=False),
    Arm("single-eager", "static", attention="eager"),
    Arm("single-compiled", "static", compiled=True),
    Arm("single-lookup", "static", speculation="prompt-lookup"),
    Arm("single-draft", "static", speculation="draft"),
    Arm("single-prefix", "static", prefix_cache=True),
    Arm("single-prefix-int8", "static", prefix_cache=True, weights="int8"),
    Arm(
        "single-prefix-lookup-int8", "static",
        prefix_cache=True, speculation="prompt-lookup", weights="int8",
    ),
    Arm("static-16", "static", 16),
    Arm("static-16-int8", "static", 16, weights="int8"),
)  # fmt: skip
"""The built-in engines' arms. The first is what a node runs when nobody chooses."""

VLLM_ARMS: Final = (
    Arm("vllm-16", "continuous", 16),
    Arm("vllm-64", "continuous", 64),
    Arm("vllm-16-chunk-256", "continuous", 16, chunk_tokens=256),
    Arm("vllm-16-prefix", "continuous", 16, prefix_cache=True),
    Arm("vllm-64-prefix", "continuous", 64, prefix_cache=True),
    Arm("vllm-16-lookup", "continuous", 16, speculation="prompt-lookup"),
    Arm("vllm-16-prefix-compiled", "continuous", 16, prefix_cache=True, compiled=True),
)
"""vLLM's arms, for nodes that run it; the shipped data has no runs of them."""

DEFAULT: Final = ARMS[0]


def by_name(name: str) -> Arm:
    """The arm called `name`.

    Raises:
        UsageError: there is none.
    """
    for arm in ARMS + VLLM_ARMS:
        if arm.name == name:
            return arm
    raise UsageError(f"there is no arm {name!r}; `veilrun tune arms` lists them")
