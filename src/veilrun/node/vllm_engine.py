"""A stock vLLM as the node's engine: a child process, asked over a private socket.

vLLM needs no change and no tokenizer: `vllm serve FOLDER --tokens-only` loads an encrypted
checkpoint like any other. `vllm_process` says who can reach it and who cannot, `vllm_wire`
what it understands differently.

A vLLM that ends by itself is cleared away and started again; answers that had begun end with
finish_reason "abort", and until it is back `ready` is False and requests get `BusyError`.

Invariants. A request that would end vLLM's worker never reaches it: `admit` and the refusals
of `vllm_wire` come first. Whatever vLLM answers, `generate` yields a `Choice` or raises
`UsageError` (vLLM refused this request) or a `TransportError`; it never hangs on a dead child.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path
from typing import Final

from veilrun.errors import BusyError, CheckpointError, DecodeError, TransportError, UsageError
from veilrun.node.engine import EngineLimits, admit
from veilrun.node.vllm_client import VllmClient
from veilrun.node.vllm_process import VllmOptions, VllmProcess, vllm_available
from veilrun.node.vllm_wire import RESTART_S, normalise, translate
from veilrun.wire import fields
from veilrun.wire.generate import Choice, GenerateRequest, SamplingParams

__all__ = ["VllmEngine", "VllmOptions", "vllm_available"]

_log = logging.getLogger(__name__)

_MAX_N: Final = 16
_MAX_RESTARTS: Final = 3
_NOTICE_S: Final = 8.0  # vLLM's own watchdog looks every 5 s whether its engine is dead


class VllmEngine:
    """Serves one folder of safetensors weights with vLLM; see `node.engine.Engine`."""

    name = "vllm"

    def __init__(self, folder: Path, options: VllmOptions | None = None) -> None:
        """Read the configuration only; nothing is started.

        Raises:
            CheckpointError: `folder` has no readable config.json that tells its vocabulary.
        """
        self._folder = folder
        self._options = options or VllmOptions()
        self.limits = _limits(folder, self._options)
        self._process: VllmProcess | None = None
        self._client: VllmClient | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._is_up = False

    @property
    def ready(self) -> bool:
        """Whether it can answer now."""
        return self._is_up and self._process is not None and self._process.exit_code is None

    async def start(self) -> None:
        """Start vLLM and wait until it has answered one request.

        vLLM calls itself healthy before it has computed anything, and some models that it
        loads end it with their first token: such a model fails here.

        Raises:
            UsageError: vLLM is not installed or does not start; its last lines are in the message.
        """
        await self.stop()
        await self._bring_up()
        self._keeper = asyncio.create_task(self._keep_up())

    async def stop(self) -> None:
        """End vLLM. Requests still running end with finish_reason "abort"."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
            self._keeper = None
        await self._bring_down()

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Choice]:
        """Yield each answer's next tokens; see `node.engine.Engine.generate`."""
        admit(request, self.limits)
        translated = translate(request, self.limits)
        if not self.ready or self._client is None:
            raise BusyError("the engine is starting or stopping", RESTART_S)
        params = request.sampling_params
        unfinished = set(range(params.n))
        begun = False
        chunks = self._client.ask(translated)
        try:
            async with contextlib.aclosing(chunks):
                async for chunk in chunks:
                    for choice in chunk.choices:
                        if choice.finish_reason is not None:
                            unfinished.discard(choice.index)
                        begun = True
                        yield normalise(choice, params)
        except (UsageError, TransportError) as error:
            if not begun:
                raise
            # Only the kind: what vLLM says may repeat the request.
            _log.error("an answer broke off: %s", type(error).__name__)
        no_logprobs = None if params.logprobs is None else ()
        for index in sorted(unfinished):
            yield Choice(index, (), "abort", logprobs=no_logprobs)

    async def _bring_up(self) -> None:
        process = VllmProcess(self._folder, self._options)
        client = VllmClient(process.socket, process.api_key)
        self._process, self._client = process, client
        limit_s, begun_s = self._options.start_timeout_s, time.monotonic()
        _log.info("starting vLLM; with a large model this takes minutes")
        try:
            async with asyncio.timeout(limit_s):
                await _healthy(process, client)
                length = await client.context_length()
                await _prove(client)
        except TimeoutError as error:
            await self._bring_down()
            raise _start_failure(process, f"it was not ready after {limit_s:.0f} s") from error
        except (TransportError, UsageError) as error:
            with contextlib.suppress(TimeoutError):  # let it say why
                await asyncio.wait_for(process.wait(), _NOTICE_S)
            await self._bring_down()
            raise _start_failure(process, process.log.cause() or str(error)) from error
        except BaseException:
            await self._bring_down()
            raise
        _log.info("vLLM answers after %.0f s", time.monotonic() - begun_s)
        process.log.forget()
        self.limits = replace(self.limits, max_model_len=length)
        self._is_up = True

    async def _bring_down(self) -> None:
        self._is_up = False
        client, self._client = self._client, None
        process, self._process = self._process, None
        if client is not None:
            await client.close()  # first: vLLM does not end while a stream is open
        if process is not None:
            await process.stop()

    async def _keep_up(self) -> None:
        """Replace a vLLM that ended by itself. Gives up, and stays unready, after some tries."""
        while (process := self._process) is not None:
            code = await process.wait()
            await self._bring_down()
            _log.error(
                "vLLM ended by itself with code %d: %s", code, process.log.cause() or "no reason"
            )
            for attempt in range(1, _MAX_RESTARTS + 1):
                try:
                    await self._bring_up()
                    break
                except UsageError as error:
                    _log.error("restart %d failed: %s", attempt, str(error).partition("\n")[0])
            else:
                _log.critical("the engine stays down")


async def _healthy(process: VllmProcess, client: VllmClient) -> None:
    while not await client.is_healthy():
        if process.exit_code is not None:
            raise TransportError(f"it ended with exit code {process.exit_code}")
        await asyncio.sleep(0.2)


async def _prove(client: VllmClient) -> None:
    """One greedy token: proof that the endpoint exists and that the model computes.

    With log-probabilities: vLLM compiles their code on first use, half a minute on a CPU, and
    every request waits meanwhile.
    """
    params = SamplingParams(temperature=0.0, max_tokens=1, logprobs=1)
    async for _ in client.ask(GenerateRequest((0,), params, stream=True)):
        pass


def _start_failure(process: VllmProcess, reason: str) -> UsageError:
    return UsageError(f"vLLM did not start: {reason}\nIts last lines:\n{process.log.last()}")


def _limits(folder: Path, options: VllmOptions) -> EngineLimits:
    """What is known before vLLM runs; its own context length replaces the model's at start."""
    try:
        body = fields.json_object((folder / "config.json").read_bytes())
    except (OSError, DecodeError) as error:
        raise CheckpointError(f"{folder} has no readable config.json: {error}") from error
    config = nested if isinstance(nested := body.get("text_config"), dict) else body
    vocab_size = config.get("vocab_size")
    if not isinstance(vocab_size, int):
        raise CheckpointError(f"{folder}/config.json does not tell vocab_size")
    longest = config.get("max_position_embeddings")
    length = options.max_model_len or (longest if isinstance(longest, int) else 2**31)
    return EngineLimits(vocab_size, length, min(_MAX_N, options.max_num_seqs))
