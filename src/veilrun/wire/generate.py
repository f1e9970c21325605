"""The node protocol: token ids in, token ids out. Values and JSON, no I/O.

The JSON is that of vLLM's `POST /inference/v1/generate` on a `--tokens-only` server, so a
stock vLLM and the built-in engine are interchangeable. Only the fields below exist; any
other field is refused by name, because a field that is silently dropped changes an answer.

Invariant: the `decode_*` functions return a value or raise `DecodeError`, nothing else.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, cast, get_args

from veilrun.errors import DecodeError
from veilrun.wire import fields
from veilrun.wire.fields import INT64_MAX, Fields

GENERATE_PATH = "/inference/v1/generate"
ABORT_PATH = "/inference/v1/abort_requests"
HEALTH_PATH = "/health"
MODELS_PATH = "/v1/models"
METRICS_PATH = "/metrics"

FinishReason = Literal["stop", "length", "abort"]

MAX_CHOICES = 128
"""Answers per prompt: how many indices the protocol has."""

MAX_LOGPROBS = 20
"""Alternatives per position: vLLM's own default limit."""

MAX_STOP_TOKEN_IDS = 128
"""Ids that end an answer: vLLM's own limit. Every one costs work at every token."""

MAX_LOGIT_BIAS = 1024
"""Ids with a bias: vLLM's own limit. Every one costs work at every token."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to choose tokens. Names, meanings and defaults are vLLM's.

    n: answers per prompt.
    max_tokens, min_tokens: length of each answer in tokens; end ids count.
    temperature: 0 is greedy. top_p, top_k (0: off), min_p: truncation of the distribution.
    seed: same seed, same answer on the same engine; None draws one.
    stop_token_ids: any of them ends an answer and is its last token.
    ignore_eos: the model's own end ids do not end an answer.
    logit_bias: id -> value added to its logit.
    logprobs: None, or how many alternatives to report per position (0: the chosen one only).
    """

    n: int = 1
    max_tokens: int = 16
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """One prompt. `token_ids` are cipher ids; their range is the engine's to check.

    cache_salt: requests may share cached prefixes only when their salts are equal.
    include_usage: end a stream with a chunk that has no choices and carries the usage.
    """

    token_ids: tuple[int, ...]
    sampling_params: SamplingParams = SamplingParams()
    request_id: str | None = None
    model: str | None = None
    stream: bool = False
    include_usage: bool = False
    cache_salt: str | None = None


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """The log-probability (natural) of one token; `rank` 1 is the most likely."""

    token_id: int
    logprob: float
    rank: int


@dataclass(frozen=True, slots=True)
class PositionLogprobs:
    """The chosen token of one position and the most likely alternatives, best first."""

    chosen: TokenLogprob
    top: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Choice:
    """One answer, or in a stream one answer's next tokens.

    token_ids: new tokens; in a stream only those since the last chunk.
    finish_reason: None while the answer goes on.
    stop_reason: the id in `stop_token_ids` that ended the answer, if one did. It is then also
        the last of `token_ids`.
    logprobs: one entry per token of `token_ids`, or None when not asked for.
    """

    index: int
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None = None
    stop_reason: int | None = None
    logprobs: tuple[PositionLogprobs, ...] | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts as the node sees them: a cross-check, never the bill."""

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class GenerateResponse:
    """A whole answer, or one chunk of a stream."""

    request_id: str
    choices: tuple[Choice, ...]
    usage: Usage | None = None


# --- encoding ---------------------------------------------------------------------------


def encode_request(request: GenerateRequest) -> bytes:
    """The JSON body of one request. Defaults are sent too: both ends may differ in version."""
    body: dict[str, Any] = {
        "token_ids": request.token_ids,
        "sampling_params": asdict(request.sampling_params),
    }
    for name in ("request_id", "model", "cache_salt"):
        if (value := getattr(request, name)) is not None:
            body[name] = value
    if request.stream:
        body["stream"] = True
        body["stream_options"] = {"include_usage": request.include_usage}
    return _dump(body)


def encode_response(response: GenerateResponse) -> bytes:
    """The JSON of a whole answer or of one stream chunk."""
    usage = None
    if response.usage is not None:
        prompt, completion = response.usage.prompt_tokens, response.usage.completion_tokens
        usage = {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        }
    return _dump(
        {
            "request_id": response.request_id,
            "choices": [_choice_to_json(choice) for choice in response.choices],
            "usage": usage,
        }
    )


def _choice_to_json(choice: Choice) -> dict[str, Any]:
    logprobs = None
    if choice.logprobs is not None:
        logprobs = {
            "content": [
                {
                    **_logprob_to_json(position.chosen),
                    "top_logprobs": [_logprob_to_json(one) for one in position.top],
                }
                for position in choice.logprobs
            ]
        }
    return {
        "index": choice.index,
        "token_ids": choice.token_ids,
        "finish_reason": choice.finish_reason,
        "stop_reason": choice.stop_reason,
        "logprobs": logprobs,
    }


def _logprob_to_json(one: TokenLogprob) -> dict[str, Any]:
    return {"token_id": one.token_id, "logprob": one.logprob, "rank": one.rank}


def _dump(body: dict[str, Any]) -> bytes:
    return json.dumps(body, separators=(",", ":"), allow_nan=False).encode()


# --- decoding ---------------------------------------------------------------------------

_finish_reason = fields.one_of(*get_args(FinishReason))


def decode_request(body: bytes) -> GenerateRequest:
    """Read a request. Unknown fields, wrong types and impossible values are named."""
    top = Fields(fields.json_object(body), "")
    options = Fields(top.take("stream_options", fields.mapping, {}), "stream_options")
    include_usage = options.take("include_usage", fields.boolean, False)
    options.finish()
    request = GenerateRequest(
        token_ids=top.take("token_ids", fields.natural_numbers),
        sampling_params=_decode_sampling(top.take("sampling_params", fields.mapping, {})),
        request_id=top.take("request_id", fields.optional(fields.short_text), None),
        model=top.take("model", fields.optional(fields.short_text), None),
        stream=top.take("stream", fields.boolean, False),
        include_usage=include_usage,
        cache_salt=top.take("cache_salt", fields.optional(fields.short_text), None),
    )
    top.finish()
    if not request.token_ids:
        raise DecodeError("token_ids is empty", field="token_ids")
    return request


def decode_response(body: bytes, *, max_choices: int = MAX_CHOICES) -> GenerateResponse:
    """Read a node's answer or stream chunk. Fields we do not use are ignored: vLLM sends many."""
    top = fields.json_object(body)
    usage = top.get("usage")
    choices = fields.at_most(max_choices, _mappings)(top.get("choices"), "choices")
    return GenerateResponse(
        request_id=fields.short_text(top.get("request_id"), "request_id"),
        choices=tuple(map(_decode_choice, choices)),
        usage=None if usage is None else _decode_usage(fields.mapping(usage, "usage")),
    )


def encode_aborts(request_ids: tuple[str, ...]) -> bytes:
    """The body of a call that stops requests."""
    return _dump({"request_ids": request_ids})


def decode_aborts(body: bytes) -> tuple[str, ...]:
    """Read the body of a call that stops requests."""
    top = Fields(fields.json_object(body), "")
    request_ids = top.take("request_ids", fields.list_of(fields.short_text))
    top.finish()
    return tuple(request_ids)


def _decode_sampling(body: Mapping[str, Any]) -> SamplingParams:
    sampling = Fields(body, "sampling_params")
    defaults = SamplingParams()
    values = {
        name: sampling.take(name, reader, getattr(defaults, name))
        for name, reader in _SAMPLING_READERS.items()
    }
    sampling.finish()
    values["top_k"] = max(values["top_k"], 0)  # vLLM writes "off" as -1 or 0
    return SamplingParams(**values)


_SAMPLING_READERS: dict[str, fields.Reader[Any]] = {
    "n": fields.within(1, MAX_CHOICES),
    "max_tokens": fields.within(1, INT64_MAX),
    "min_tokens": fields.within(0, INT64_MAX),
    "temperature": fields.between(0.0, 100.0),
    "top_p": fields.between(0.0, 1.0, open_low=True),
    "top_k": fields.within(-1, INT64_MAX),
    "min_p": fields.between(0.0, 1.0),
    "seed": fields.optional(fields.within(-INT64_MAX - 1, INT64_MAX)),
    "presence_penalty": fields.between(-2.0, 2.0),
    "frequency_penalty": fields.between(-2.0, 2.0),
    "repetition_penalty": fields.between(0.0, 100.0, open_low=True),
    "stop_token_ids": fields.at_most(MAX_STOP_TOKEN_IDS, fields.natural_numbers),
    "ignore_eos": fields.boolean,
    "logit_bias": fields.at_most(MAX_LOGIT_BIAS, fields.id_bias),
    "logprobs": fields.optional(fields.within(0, MAX_LOGPROBS)),
}


_mappings = fields.list_of(fields.mapping)
_choice_index = fields.within(0, MAX_CHOICES - 1)
_stop_reason = fields.within(0, INT64_MAX)


def _decode_choice(choice: Mapping[str, Any]) -> Choice:
    """Without `Fields`: this runs once per token of every stream, and needs half the time so."""
    token_ids = fields.natural_numbers(choice.get("token_ids"), "choice.token_ids")
    positions = None
    if (logprobs := choice.get("logprobs")) is not None:
        positions = _decode_logprobs(fields.mapping(logprobs, "choice.logprobs"))
        if len(positions) != len(token_ids):
            raise DecodeError(f"choice has {len(token_ids)} tokens and {len(positions)} logprobs")
    if (finish_reason := choice.get("finish_reason")) is not None:
        finish_reason = _finish_reason(finish_reason, "choice.finish_reason")
    if (stop_reason := choice.get("stop_reason")) is not None:
        stop_reason = _stop_reason(stop_reason, "choice.stop_reason")
    return Choice(
        index=_choice_index(choice.get("index"), "choice.index"),
        token_ids=token_ids,
        finish_reason=cast("FinishReason | None", finish_reason),
        stop_reason=stop_reason,
        logprobs=positions,
    )


def _decode_logprobs(body: Mapping[str, Any]) -> tuple[PositionLogprobs, ...]:
    entries = Fields(body, "logprobs").take("content", fields.list_of(fields.mapping))
    positions = []
    for entry in entries:
        position = Fields(entry, "logprobs.content")
        top = position.take("top_logprobs", fields.list_of(fields.mapping))
        alternatives = tuple(_decode_logprob(Fields(one, "top_logprobs")) for one in top)
        positions.append(PositionLogprobs(_decode_logprob(position), alternatives))
    return tuple(positions)


def _decode_logprob(entry: Fields) -> TokenLogprob:
    return TokenLogprob(
        token_id=entry.take("token_id", fields.within(0, INT64_MAX)),
        logprob=entry.take("logprob", fields.between(-sys.float_info.max, 0.01)),
        rank=entry.take("rank", fields.within(0, INT64_MAX)),
    )


def _decode_usage(body: Mapping[str, Any]) -> Usage:
    usage = Fields(body, "usage")
    return Usage(
        prompt_tokens=usage.take("prompt_tokens", fields.within(0, INT64_MAX)),
        completion_tokens=usage.take("completion_tokens", fields.within(0, INT64_MAX), 0),
    )
