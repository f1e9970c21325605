"""Bodies of `/v1/chat/completions` and `/v1/completions` as frozen values.

A field is read, or is accepted because its value changes nothing, or is refused by name: a
field that is silently dropped changes an answer. `null` is the same as absent, everywhere.

Invariant: whatever the bytes, the outcome is a value or a `RequestFault` that names the field.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from veilrun.errors import DecodeError
from veilrun.serve.ask import Sampling
from veilrun.serve.openai_errors import RequestFault
from veilrun.wire import fields
from veilrun.wire.fields import INT64_MAX, Fields
from veilrun.wire.generate import MAX_LOGPROBS

T = TypeVar("T")

MAX_ANSWERS: Final = 16
"""`n`: what a node accepts per prompt (`EngineLimits.max_n`)."""

MAX_PROMPTS: Final = 128
"""Prompts in one completions request."""

MAX_STOPS: Final = 4
"""OpenAI's limit."""

COMPLETION_TOKENS: Final = 16
"""OpenAI's default for completions. Chat has none: an answer may fill the context."""

_ROLES: Final = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
}
"""OpenAI's `developer` is the `system` of the chat templates."""


@dataclass(frozen=True, slots=True)
class Options:
    """What both kinds of request share.

    max_tokens: None when the request leaves it open.
    stops: texts that end an answer and are not part of it.
    include_usage: end a stream with a chunk that carries the token counts.
    """

    model: str
    sampling: Sampling
    max_tokens: int | None
    stops: tuple[str, ...]
    stream: bool
    include_usage: bool


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A conversation: each message has a `role` and a `content`, and perhaps a `name`."""

    messages: tuple[dict[str, str], ...]
    options: Options


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """Prompts, each a text or plain token ids."""

    prompts: tuple[str | tuple[int, ...], ...]
    options: Options


def decode_chat(body: bytes) -> ChatRequest:
    """Read the body of `POST /v1/chat/completions`."""
    return _read(body, _chat)


def decode_completion(body: bytes) -> CompletionRequest:
    """Read the body of `POST /v1/completions`."""
    return _read(body, _completion)


def _read(body: bytes, reader: Callable[[Fields], T]) -> T:
    try:
        top = Fields(_without_nulls(fields.json_object(body)), "")
        value = reader(top)
        top.finish()
    except DecodeError as error:
        raise RequestFault(str(error), param=error.field) from error
    return value


def _chat(top: Fields) -> ChatRequest:
    _refuse_unsupported(top, _NEUTRAL | _NEUTRAL_IN_CHAT)
    messages = top.take("messages", fields.list_of(_message))
    if not messages:
        raise DecodeError("messages is empty", field="messages")
    wanted = top.take("logprobs", fields.boolean, False)
    alternatives = top.take("top_logprobs", fields.within(0, MAX_LOGPROBS), None)
    if alternatives is not None and not wanted:
        raise DecodeError("top_logprobs needs logprobs to be true", field="top_logprobs")
    logprobs = (alternatives or 0) if wanted else None
    names = ("max_tokens", "max_completion_tokens")
    limits = [top.take(name, fields.within(1, INT64_MAX), None) for name in names]
    if None not in limits:
        raise DecodeError("give max_completion_tokens or max_tokens, not both", field=names[0])
    return ChatRequest(tuple(messages), _options(top, logprobs, limits[0] or limits[1]))


def _completion(top: Fields) -> CompletionRequest:
    _refuse_unsupported(top, _NEUTRAL | _NEUTRAL_IN_COMPLETIONS)
    prompts = top.take("prompt", _prompts)
    logprobs = top.take("logprobs", fields.within(0, MAX_LOGPROBS), None)
    max_tokens = top.take("max_tokens", fields.within(1, INT64_MAX), COMPLETION_TOKENS)
    return CompletionRequest(prompts, _options(top, logprobs, max_tokens))


def _options(top: Fields, logprobs: int | None, max_tokens: int | None) -> Options:
    stream_options = Fields(
        _without_nulls(top.take("stream_options", fields.mapping, {})), "stream_options"
    )
    include_usage = stream_options.take("include_usage", fields.boolean, False)
    _refuse_unsupported(stream_options, {"include_obfuscation": (False,)})
    stream_options.finish()
    defaults = Sampling()
    chosen = {
        name: top.take(name, reader, getattr(defaults, name))
        for name, reader in _SAMPLING_READERS.items()
    }
    chosen["top_k"] = max(chosen["top_k"], 0)  # "off" is written as -1 or 0
    return Options(
        model=top.take("model", fields.short_text),
        sampling=Sampling(**chosen, logprobs=logprobs),
        max_tokens=max_tokens,
        stops=top.take("stop", _stops, ()),
        stream=top.take("stream", fields.boolean, False),
        include_usage=include_usage,
    )


# --- fields that are accepted only where they change nothing -----------------------------

_Neutral = dict[str, tuple[Any, ...]]

_ANY: Final = object()

_NEUTRAL: _Neutral = {
    # Labels for a provider's own records: this proxy keeps none and sends none.
    "user": (_ANY,),
    "metadata": (_ANY,),
    "safety_identifier": (_ANY,),
    "prompt_cache_key": (_ANY,),
    "store": (False,),
    "service_tier": ("auto", "default"),
}
"""Field -> the values that change nothing; any other value is refused."""

_NEUTRAL_IN_CHAT: _Neutral = {
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "reasoning_effort": (),
    "verbosity": (),
    "web_search_options": (),
    "prompt_cache_retention": (),
}

_NEUTRAL_IN_COMPLETIONS: _Neutral = {"best_of": (1,), "echo": (False,), "suffix": ("",)}

_NEUTRAL_IN_MESSAGES: _Neutral = {
    # Applications send a received answer back as it was, empty fields included.
    "refusal": (),
    "audio": (),
    "annotations": ([],),
    "tool_calls": ([],),
    "function_call": (),
    "tool_call_id": (),
}


def _refuse_unsupported(body: Fields, neutral: _Neutral) -> None:
    for name, values in neutral.items():
        given = body.take(name, _anything, _ANY)
        if given is _ANY or _ANY in values or any(_same(given, one) for one in values):
            continue
        path = body.path(name)
        accepted = f"; accepted: {values}" if values else ""
        raise RequestFault(
            f"{path} is not supported{accepted}", param=path, code="unsupported_parameter"
        )


def _same(given: Any, neutral: Any) -> bool:
    """Equal and of one type: in Python, 0 equals false."""
    return type(given) is type(neutral) and bool(given == neutral)


def _anything(value: Any, name: str) -> Any:
    return value


def _without_nulls(body: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in body.items() if value is not None}


# --- readers -----------------------------------------------------------------------------


def _text(value: Any, name: str) -> str:
    """Any text that UTF-8 can write; JSON can also write half a character."""
    if not isinstance(value, str):
        raise DecodeError(f"{name} must be text", field=name)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise DecodeError(f"{name} holds half of a surrogate pair", field=name) from None
    return value


def _message(value: Any, name: str) -> dict[str, str]:
    message = Fields(_without_nulls(fields.mapping(value, name)), name)
    _refuse_unsupported(message, _NEUTRAL_IN_MESSAGES)
    role = message.take("role", fields.one_of(*_ROLES))
    read = {"role": _ROLES[role], "content": message.take("content", _content)}
    speaker = message.take("name", _text, None)
    if speaker is not None:
        read["name"] = speaker
    message.finish()
    return read


def _content(value: Any, name: str) -> str:
    """Text, or a list of text parts, which are joined by line ends as vLLM does."""
    if not isinstance(value, list):
        return _text(value, name)
    return "\n".join(fields.list_of(_text_part)(value, name))


def _text_part(value: Any, name: str) -> str:
    part = Fields(fields.mapping(value, name), name)
    part.take("type", fields.one_of("text"))
    text = part.take("text", _text)
    part.finish()
    return text


def _prompts(value: Any, name: str) -> tuple[str | tuple[int, ...], ...]:
    """Text, texts, ids, or lists of ids."""
    if isinstance(value, str):
        return (_text(value, name),)
    if not isinstance(value, list) or not value:
        raise DecodeError(f"{name} must be a text or a list that is not empty", field=name)
    if type(value[0]) is int:
        return (fields.natural_numbers(value, name),)
    if len(value) > MAX_PROMPTS:
        raise DecodeError(f"{name} holds {len(value)} prompts, the limit is {MAX_PROMPTS}", name)
    reader: fields.Reader[Any] = _text if isinstance(value[0], str) else fields.natural_numbers
    return tuple(fields.list_of(reader)(value, name))


def _stops(value: Any, name: str) -> tuple[str, ...]:
    texts = [_text(value, name)] if isinstance(value, str) else fields.list_of(_text)(value, name)
    if len(texts) > MAX_STOPS or "" in texts:
        raise DecodeError(f"{name} must hold at most {MAX_STOPS} texts, none empty", field=name)
    return tuple(texts)


def _bias(value: Any, name: str) -> dict[int, float]:
    bias = fields.id_bias(value, name)
    if any(abs(one) > 100 for one in bias.values()):
        raise DecodeError(f"{name} must hold numbers from -100 to 100", field=name)
    return bias


_SAMPLING_READERS: Final[dict[str, fields.Reader[Any]]] = {
    "n": fields.within(1, MAX_ANSWERS),
    "temperature": fields.between(0.0, 2.0),
    "top_p": fields.between(0.0, 1.0, open_low=True),
    "seed": fields.within(-INT64_MAX - 1, INT64_MAX),
    "presence_penalty": fields.between(-2.0, 2.0),
    "frequency_penalty": fields.between(-2.0, 2.0),
    "logit_bias": _bias,
    # Beyond OpenAI's: what the engines know besides.
    "top_k": fields.within(-1, INT64_MAX),
    "min_p": fields.between(0.0, 1.0),
    "min_tokens": fields.within(0, INT64_MAX),
    "repetition_penalty": fields.between(0.0, 100.0, open_low=True),
    "ignore_eos": fields.boolean,
}
