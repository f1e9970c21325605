"""What vLLM makes of the node protocol: the differences, undone on both ways. No I/O.

vLLM 0.32 speaks the JSON of `wire.generate`. Where it means something else by it:

    max_tokens beyond the context      cut to fit (vLLM cuts or refuses, by version)
    no cache_salt                      a fresh salt: nobody shares a prefix by default
    0 < temperature < 0.01             refused (vLLM would silently take 0.01)
    temperature > 2, greedy n > 1      refused (vLLM refuses)
    seed -1                            refused (to vLLM it means "none")
    > 1024 biases, > 100 stop ids      refused (on a GPU either can end vLLM's worker)
    request_id, model                  not passed on (callers could pick each other's ids)
    stop_reason of the model's own end vLLM tells its id; None here, as the protocol says
    top alternatives                   vLLM puts the chosen token first, whatever its rank

Invariant: whatever vLLM sends, the readers here return a value or raise `UsageError` (vLLM
refused this request), `BusyError` (vLLM is broken) or another `TransportError`.
"""

from __future__ import annotations

import contextlib
import secrets
from dataclasses import replace
from typing import Final

from veilrun.errors import BusyError, DecodeError, TransportError, UsageError, VeilrunError
from veilrun.node.engine import EngineLimits
from veilrun.wire import fields
from veilrun.wire.fields import Fields
from veilrun.wire.generate import (
    MAX_LOGPROBS,
    Choice,
    GenerateRequest,
    GenerateResponse,
    PositionLogprobs,
    SamplingParams,
    TokenLogprob,
    decode_response,
)

RESTART_S: Final = 10.0
"""What a caller is told to wait when vLLM broke: it takes longer, but not on every machine."""

MAX_LOGPROBS_OF_VLLM: Final = MAX_LOGPROBS + 1
"""For `--max-logprobs`: one more than the protocol's, see `best_alternatives`."""

_MAX_EVENT_BYTES: Final = 64 * 2**20
_MAX_BIASES: Final = 1024  # vllm/v1/worker/gpu/sample/logit_bias.py: more raises in the worker
_MAX_STOP_IDS: Final = 100  # there 128, the model's own end ids included
_LEAST_TEMPERATURE: Final = 0.01  # vllm/sampling_params.py, as the next
_MOST_TEMPERATURE: Final = 2.0


def translate(request: GenerateRequest, limits: EngineLimits) -> GenerateRequest:
    """The request as vLLM shall see it.

    Raises:
        UsageError: vLLM cannot do this, or would do something else; the field is named.
    """
    params = request.sampling_params
    _refuse(params)
    room = limits.max_model_len - len(request.token_ids)
    return GenerateRequest(
        token_ids=request.token_ids,
        sampling_params=replace(
            params,
            max_tokens=min(params.max_tokens, room),
            min_tokens=min(params.min_tokens, room),
            top_k=min(params.top_k, limits.vocab_size),  # vLLM keeps it in 32 bits
            logprobs=params.logprobs and params.logprobs + 1,
        ),
        stream=True,
        cache_salt=request.cache_salt or secrets.token_urlsafe(32),
    )


def _refuse(params: SamplingParams) -> None:
    if 0.0 < params.temperature < _LEAST_TEMPERATURE:
        raise UsageError(
            f"temperature: {params.temperature} is below vLLM's least of {_LEAST_TEMPERATURE}; "
            "use 0 for greedy"
        )
    if params.temperature > _MOST_TEMPERATURE:
        raise UsageError(
            f"temperature: {params.temperature} is above vLLM's most of {_MOST_TEMPERATURE}"
        )
    if params.temperature == 0.0 and params.n > 1:
        raise UsageError("n: vLLM gives one greedy answer; the others would be the same")
    if params.seed == -1:
        raise UsageError("seed: -1 means no seed to vLLM; leave it out or use another number")
    if params.min_tokens > params.max_tokens:
        raise UsageError(f"min_tokens: {params.min_tokens} is more than {params.max_tokens}")
    for name, count, most in (
        ("logit_bias", len(params.logit_bias), _MAX_BIASES),
        ("stop_token_ids", len(params.stop_token_ids), _MAX_STOP_IDS),
    ):
        if count > most:
            raise UsageError(f"{name}: {count} ids, vLLM takes {most}")


class EventLines:
    """Takes a server-sent event stream apart: blocks of bytes in, the data of each event out.

    vLLM writes one `data:` line per event. A slow reader's tokens come merged in one long line,
    so a line's bound is generous.
    """

    def __init__(self) -> None:
        self._begun: list[bytes] = []  # of a line whose end is still to come
        self._begun_bytes = 0

    def feed(self, block: bytes) -> list[bytes]:
        """The data of the events that `block` completes."""
        *lines, rest = block.split(b"\n")
        if lines:
            lines[0] = b"".join((*self._begun, lines[0]))
            self._begun, self._begun_bytes = [], 0
        self._begun.append(rest)
        self._begun_bytes += len(rest)
        if self._begun_bytes > _MAX_EVENT_BYTES:
            raise TransportError(f"vLLM sent a line of more than {_MAX_EVENT_BYTES} bytes")
        return [line[5:].strip() for line in lines if line.startswith(b"data:")]


def read_event(data: bytes) -> GenerateResponse | None:
    """One event's chunk; None for the last event, which has none."""
    if data == b"[DONE]":
        return None
    if data.startswith(b'{"error"'):  # errors come as events once the stream has begun
        raise read_error(data, fallback_status=500)
    try:
        return decode_response(data)
    except DecodeError as error:
        raise TransportError(f"vLLM's answer does not parse: {error}") from error


def read_error(body: bytes, fallback_status: int) -> VeilrunError:
    """The error in an OpenAI-shaped body, or in whatever else came with that status."""
    message, status = body[:200].decode(errors="replace") or "nothing", fallback_status
    with contextlib.suppress(DecodeError):
        error = Fields(fields.json_object(body), "").take("error", fields.mapping)
        message = str(error.get("message"))[:500]
        if isinstance(code := error.get("code"), int):
            status = code
    if status in (400, 422):
        return UsageError(f"vLLM refused the request: {message}")
    if status >= 500:
        return BusyError(f"vLLM failed with {status}: {message}", RESTART_S)
    return TransportError(f"vLLM answered {status}: {message}")


def read_context_length(body: bytes) -> int:
    """The context length that vLLM settled on, from its list of models."""
    try:
        models = Fields(fields.json_object(body), "").take("data", fields.list_of(fields.mapping))
        return Fields(models[0], "model").take("max_model_len", fields.within(1, 2**31))
    except (DecodeError, IndexError) as error:
        raise TransportError(f"vLLM does not describe its model: {error}") from error


def normalise(choice: Choice, params: SamplingParams) -> Choice:
    """The choice as the protocol has it: see the table at the top of this file."""
    logprobs = choice.logprobs
    if logprobs is not None:
        n_top = params.logprobs or 0
        logprobs = tuple(
            PositionLogprobs(one.chosen, best_alternatives(one.top, n_top)) for one in logprobs
        )
    stop_reason = choice.stop_reason if choice.stop_reason in params.stop_token_ids else None
    return replace(choice, stop_reason=stop_reason, logprobs=logprobs)


def best_alternatives(top: tuple[TokenLogprob, ...], n_top: int) -> tuple[TokenLogprob, ...]:
    """The `n_top` most likely of `top`, best first.

    vLLM lists the chosen token, then the others by rank, and cuts the list at the number asked
    for. Asked for one more than `n_top`, it lists the best `n_top` whatever was chosen.
    """
    return tuple(sorted(top, key=lambda one: (one.rank, -one.logprob))[:n_top])
