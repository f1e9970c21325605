"""What a node is asked to do, in a few numbers, and traffic that looks like it.

A workload holds no text and no ids, so it may be kept, shared and compared. `draw` makes one of
a kind (`KINDS`) at random, and `traffic` makes requests from one: random ids with the lengths, the
common prefixes and the arrivals that the workload says.

Whether an answer repeats itself decides what guessing ahead is worth. Untrained weights know no
text, so the models of `specimens` read it off a prompt's last id: ids below `n_looping` begin an
answer that goes round in a short loop. With any other model the last ids are as random as the rest.

Invariant: a workload's numbers are within the bounds that `__post_init__` checks, and the same
workload and seed give the same traffic everywhere.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from veilrun.errors import DecodeError, UsageError

_MAX_TOKENS: Final = 1_000_000
_MAX_REQUESTS: Final = 100_000
_MAX_RATE_PER_S: Final = 1_000_000.0

USUAL_AGREEMENT: Final = 0.7
"""Of a draft that nobody has measured."""


@dataclass(frozen=True, slots=True)
class Workload:
    """kind: a word for people, and what evaluations hold out; selectors do not see it.

    n_requests: in one go, after which nothing is remembered.
    concurrency: requests in flight at most; the next one comes when one has ended.
    rate_per_s: with it requests come at random moments (Poisson), `concurrency` at most. 0: as
        fast as `concurrency` allows.
    prompt_tokens, answer_tokens: medians.
    spread: standard deviation of the logarithm of both lengths.
    prefix_tokens: how many ids a prompt has in common with others, at its start.
    n_prefixes: how many such beginnings there are.
    repetition: share of an answer's tokens that prompt lookup would guess, from 0 to 1.
    agreement: share of an answer's tokens that the draft model guesses right; 0: there is none, or
        nobody has measured it.
    sampled: share of requests that draw their tokens; the others take the likeliest.
    """

    kind: str
    n_requests: int
    concurrency: int
    prompt_tokens: int
    answer_tokens: int
    rate_per_s: float = 0.0
    spread: float = 0.0
    prefix_tokens: int = 0
    n_prefixes: int = 1
    repetition: float = 0.0
    agreement: float = 0.0
    sampled: float = 0.0

    def __post_init__(self) -> None:
        bounds = {
            "n_requests": (1, _MAX_REQUESTS),
            "concurrency": (1, _MAX_REQUESTS),
            "prompt_tokens": (1, _MAX_TOKENS),
            "answer_tokens": (1, _MAX_TOKENS),
            "rate_per_s": (0, _MAX_RATE_PER_S),
            "spread": (0, 3),
            "prefix_tokens": (0, self.prompt_tokens - 1),
            "n_prefixes": (1, _MAX_REQUESTS),
            "repetition": (0, 1),
            "agreement": (0, 1),
            "sampled": (0, 1),
        }
        for name, (least, most) in bounds.items():
            value = getattr(self, name)
            if not least <= value <= most:
                raise UsageError(f"workload: {name} is {value}, not from {least} to {most}")

    def features(self) -> dict[str, float]:
        """What a selector sees: the numbers, on scales on which ratios are steps.

        n_reused: prompt tokens that some earlier request of the same traffic began with.
        n_together: requests that find company, on average over what `concurrency` allows.
        """
        n_reused = self.prefix_tokens * max(0, self.n_requests - self.n_prefixes)
        total = self.n_requests * self.prompt_tokens
        return {
            "log_n_requests": math.log2(self.n_requests),
            "log_concurrency": math.log2(min(self.concurrency, self.n_requests)),
            "log_prompt_tokens": math.log2(self.prompt_tokens),
            "log_answer_tokens": math.log2(self.answer_tokens),
            "log_prompt_over_answer": math.log2(self.prompt_tokens / self.answer_tokens),
            "rate_per_s": self.rate_per_s,
            "spread": self.spread,
            "reused_share": n_reused / total,
            "log_reused_tokens": math.log2(1 + n_reused / self.n_requests),
            "repetition": self.repetition,
            "agreement": self.agreement * (1 - self.sampled),
            "guessable_tokens": self.repetition * (1 - self.sampled) * self.answer_tokens,
            "sampled": self.sampled,
        }

    def describe(self) -> str:
        """The workload in a sentence, for people and for selectors that read."""
        pace = (
            f"at random moments, {self.rate_per_s:.1f} a second"
            if self.rate_per_s
            else f"{min(self.concurrency, self.n_requests)} at a time"
        )
        drafted = f", a draft guesses {self.agreement:.0%} of them" if self.agreement else ""
        return (
            f"{self.n_requests} requests {pace}, prompts of about {self.prompt_tokens} tokens of "
            f"which {self.prefix_tokens} are shared, answers of about {self.answer_tokens} tokens, "
            f"{self.repetition:.0%} of them repetition{drafted}, {self.sampled:.0%} of requests "
            "sampled"
        )

    def to_json(self) -> dict[str, Any]:
        """For a file; `from_json` reads it."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Workload:
        """Raises: DecodeError: a name that is none of ours, or a number of the wrong kind."""
        known = {one.name: one.type for one in fields(cls)}
        for name in value:
            if name not in known:
                raise DecodeError(f"workload: {name!r} is not one of {', '.join(known)}")
        for name, of_type in known.items():
            if name not in value:
                continue
            wanted: tuple[type, ...] = _JSON_TYPES[str(of_type)]
            if not isinstance(value[name], wanted) or isinstance(value[name], bool):
                raise DecodeError(f"workload: {name} is not of type {of_type}")
        try:
            return cls(**value)
        except (TypeError, UsageError) as error:
            raise DecodeError(f"workload: {error}") from error


_JSON_TYPES: Final = {"int": (int,), "float": (int, float), "str": (str,)}


@dataclass(frozen=True, slots=True)
class Ask:
    """One request of some traffic.

    at_s: when it may come, after the start.
    """

    token_ids: tuple[int, ...]
    answer_tokens: int
    at_s: float
    sampled: bool


def traffic(
    workload: Workload, vocab_size: int, seed: int, *, n_looping: int = 0, max_tokens: int
) -> tuple[Ask, ...]:
    """Requests that look like the workload; prompt and answer together fit in `max_tokens`.

    The generator is numpy's: nothing here is secret.
    """
    random = np.random.default_rng(seed)
    n = workload.n_requests
    n_shared = min(workload.prefix_tokens, max_tokens // 2 - 1)
    prefixes = random.integers(0, vocab_size, (workload.n_prefixes, n_shared))
    stretch = np.exp(workload.spread * random.standard_normal((n, 2)))
    sampled = _some(n, workload.sampled, random)
    looping = _some(n, workload.repetition, random)
    gaps = random.exponential(1 / workload.rate_per_s, n) if workload.rate_per_s else np.zeros(n)
    times = np.cumsum(gaps) - gaps[0]
    asks = []
    for i in range(n):
        n_answer = _clip(workload.answer_tokens * stretch[i, 0], 1, max_tokens // 2)
        room = max_tokens - n_answer
        n_prompt = _clip(workload.prompt_tokens * stretch[i, 1], n_shared + 1, room)
        own = random.integers(0, vocab_size, n_prompt - n_shared)
        if n_looping:
            own[-1] = random.integers(*((0, n_looping) if looping[i] else (n_looping, vocab_size)))
        ids = np.concatenate([prefixes[i % workload.n_prefixes], own])
        asks.append(Ask(tuple(ids.tolist()), n_answer, float(times[i]), bool(sampled[i])))
    return tuple(asks)


_TELLING: Final = 8
"""Tokens; shorter answers are rounded too much to tell how lengths spread."""


def observed(workload: Workload, asks: Sequence[Ask]) -> Workload:
    """The same workload, with lengths, spread and pace as some of its traffic really had them.

    Lengths are geometric means, which are the medians of what `traffic` draws.
    """
    lengths = np.log([(len(ask.token_ids), ask.answer_tokens) for ask in asks])
    prompt, answer = np.exp(lengths.mean(0))
    told = lengths if answer >= _TELLING else lengths[:, :1]
    last_s = max(ask.at_s for ask in asks)
    return replace(
        workload,
        prompt_tokens=max(round(prompt), workload.prefix_tokens + 1),
        answer_tokens=max(round(answer), 1),
        spread=round(min(float(told.std(0).mean()), 3.0), 4),
        rate_per_s=round((len(asks) - 1) / last_s, 4) if last_s else workload.rate_per_s,
        sampled=sum(ask.sampled for ask in asks) / len(asks),
    )


def _some(n: int, share: float, random: np.random.Generator) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """`n` flags, that share of them set, in random order."""
    flags = np.arange(n) < round(n * share)
    return random.permutation(flags)


def _clip(value: float, least: int, most: int) -> int:
    return max(1, min(max(round(value), least), most))


@dataclass(frozen=True, slots=True)
class _Ranges:
    """From where to where each number of a kind is drawn; lengths and counts by their logarithm."""

    concurrency: tuple[int, int]
    prompt: tuple[int, int]
    answer: tuple[int, int]
    prefix_share: tuple[float, float] = (0.0, 0.0)
    repetition: tuple[float, float] = (0.0, 0.0)
    sampled: tuple[float, float] = (0.0, 0.0)
    rate_per_s: tuple[float, float] = (0.0, 0.0)
    at_once: bool = False


KINDS: Final[Mapping[str, _Ranges]] = {
    "chat": _Ranges((1, 8), (24, 200), (12, 36), (0.1, 0.5), (0.0, 0.4), (0.0, 1.0)),
    "edit": _Ranges((1, 4), (48, 256), (16, 40), (0.0, 0.2), (0.6, 1.0)),
    "summary": _Ranges((1, 4), (160, 480), (8, 24), (0.0, 0.1), (0.0, 0.4)),
    "retrieval": _Ranges((1, 8), (160, 480), (4, 20), (0.7, 0.95), (0.0, 0.6)),
    "label": _Ranges((1, 16), (32, 300), (1, 3), (0.2, 0.9)),
    "bulk": _Ranges((16, 16), (12, 128), (8, 32), (0.0, 0.3), (0.0, 0.5), at_once=True),
    "trickle": _Ranges((8, 8), (24, 256), (8, 24), (0.0, 0.6), (0.0, 1.0), rate_per_s=(2.0, 12.0)),
}
"""Kinds of work that people serve small models for, and what they look like."""


def draw(kind: str, n_requests: tuple[int, int], seed: int) -> Workload:
    """A workload of that kind.

    Raises:
        UsageError: there is no such kind.
    """
    if kind not in KINDS:
        raise UsageError(f"{kind!r} is no kind of workload; there are {', '.join(KINDS)}")
    ranges, random = KINDS[kind], np.random.default_rng(seed)

    def count(bounds: tuple[int, int]) -> int:
        return round(math.exp(random.uniform(math.log(bounds[0]), math.log(bounds[1]))))

    def share(bounds: tuple[float, float]) -> float:
        return round(float(random.uniform(*bounds)), 3)

    n = count(n_requests)
    prompt = count(ranges.prompt)
    return Workload(
        kind=kind,
        n_requests=n,
        concurrency=n if ranges.at_once else min(n, count(ranges.concurrency)),
        prompt_tokens=prompt,
        answer_tokens=count(ranges.answer),
        rate_per_s=share(ranges.rate_per_s),
        spread=share((0.0, 0.4)),
        prefix_tokens=int(prompt * share(ranges.prefix_share)),
        n_prefixes=1 if random.random() < _ONE_PREFIX else 2,
        repetition=share(ranges.repetition),
        sampled=share(ranges.sampled) if random.random() < _SOME_SAMPLED else 0.0,
    )


def typical(kind: str, n_requests: int = 16) -> Workload:
    """The middle of a kind: what is meant where somebody says nothing more than its name.

    Raises:
        UsageError: there is no such kind.
    """
    if kind not in KINDS:
        raise UsageError(f"{kind!r} is no kind of workload; there are {', '.join(KINDS)}")
    ranges = KINDS[kind]

    def count(bounds: tuple[int, int]) -> int:
        return round(math.sqrt(bounds[0] * bounds[1]))

    def share(bounds: tuple[float, float]) -> float:
        return round((bounds[0] + bounds[1]) / 2, 3)

    prompt = count(ranges.prompt)
    return Workload(
        kind=kind,
        n_requests=n_requests,
        concurrency=n_requests if ranges.at_once else min(n_requests, count(ranges.concurrency)),
        prompt_tokens=prompt,
        answer_tokens=count(ranges.answer),
        rate_per_s=share(ranges.rate_per_s),
        spread=0.2,
        prefix_tokens=int(prompt * share(ranges.prefix_share)),
        repetition=share(ranges.repetition),
    )


_ONE_PREFIX: Final = 0.7
_SOME_SAMPLED: Final = 0.5


def read(path: Path) -> Workload:
    """A workload from a JSON file.

    Raises:
        UsageError: the file cannot be read; DecodeError: it holds no workload.
    """
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the workload in {path}") from error
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:  # also a number of more digits than are read
        raise DecodeError(f"{path} is not JSON") from error
    if not isinstance(value, dict):
        raise DecodeError(f"{path} does not hold one JSON object")
    return Workload.from_json(value)
