"""vLLM as a child process: its command line, its environment, its folder, its end.

vLLM listens on a Unix socket inside a folder that only this user may enter; its message
queues and temporary files go there too. A random key guards `/inference` and `/v1` besides.

Covered: another user of the machine reaches no route of vLLM, neither those its key check
leaves open (`/invocations`, `/metrics`, `/tokenize`, ...) nor its queues, which are open to
everybody when they lie in `/tmp`. The key is in the environment, never in the process list.

Not covered: root and this user reach all of it. Torch's process group listens on loopback
ports without a password; a local user who speaks to those can disturb the engine. Several
GPUs or machines open more ports: give such a node a machine or a network of its own.

Invariant: after `stop`, after a failed start, and after this process has died in whatever way,
no process and no file of vLLM's is left: see `lifeline`.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from veilrun.config import environment_without_secrets
from veilrun.errors import UsageError
from veilrun.node import lifeline as _lifeline
from veilrun.node.vllm_wire import MAX_LOGPROBS_OF_VLLM

N_LOG_LINES = 400
_LINE_BYTES = 500
_POLL_S = 0.05
_LIFELINE_S = 5.0  # what ending and clearing away take, beyond the grace
_LONGEST_FOLDER = 60  # a socket's path has at most 107 characters; vLLM adds 37 to the folder's


@dataclass(frozen=True, slots=True)
class VllmOptions:
    """How to run vLLM.

    max_model_len: prompt and answer together, in tokens; None: the model's own or what fits.
    max_num_seqs: answers at a time.
    dtype: "auto" is vLLM's choice: the checkpoint's own, but half precision for float32.
    gpu_memory_fraction: share of each GPU's memory, from 0 to 1; None: vLLM's default.
    tensor_parallel_size: GPUs that share the model.
    start_timeout_s: loading and compiling a large model takes minutes.
    stop_grace_s: from the polite signal to the deadly one.
    extra_arguments: more of `vllm serve`'s own, as on its command line.
    """

    max_model_len: int | None = None
    max_num_seqs: int = 64
    dtype: str = "auto"
    gpu_memory_fraction: float | None = None
    tensor_parallel_size: int = 1
    start_timeout_s: float = 1800.0
    stop_grace_s: float = 20.0
    extra_arguments: tuple[str, ...] = ()


def vllm_executable() -> Path | None:
    """The `vllm` command beside this Python, or else the one on PATH."""
    beside = shutil.which("vllm", path=str(Path(sys.executable).parent))
    found = beside or shutil.which("vllm")
    return Path(found).resolve() if found else None


_NOT_INSTALLED = (
    f"there is no vllm command beside {sys.executable} or on PATH; install vLLM 0.30 or newer "
    "(pip install vllm), or use --engine transformers"
)


def vllm_available() -> str | None:
    """None when vLLM can be started, or why it cannot."""
    return None if vllm_executable() else _NOT_INSTALLED


# Veilrun sets these, or nobody does: each would open a door, log prompts or run foreign code.
_RESERVED = (
    "--allowed-local-media-path",
    "--api-key",
    "--config",
    "--enable-log-outputs",
    "--enable-log-requests",
    "--grpc",
    "--host",
    "--max-logprobs",
    "--middleware",
    "--no-tokens-only",
    "--port",
    "--root-path",
    "--served-model-name",
    "--skip-tokenizer-init",
    "--tokenizer",
    "--tokens-only",
    "--trust-remote-code",
    "--uds",
)


def serve_command(
    executable: Path, folder: Path, socket: Path, options: VllmOptions
) -> tuple[str, ...]:
    """The command line that serves `folder` on `socket`.

    Raises:
        UsageError: an extra argument is veilrun's own to set.
    """
    for argument in options.extra_arguments:
        name = argument.split("=", 1)[0].replace("_", "-")
        # vLLM takes any beginning of a name for the name.
        if len(name) > 2 and any(one.startswith(name) for one in _RESERVED):
            raise UsageError(f"vLLM's {argument.split('=', 1)[0]} is set by veilrun; leave it out")
    command = [str(executable), "serve", str(folder.resolve()), "--tokens-only"]
    command += ["--uds", str(socket), "--host", "127.0.0.1"]  # host: should --uds ever be ignored
    command += ["--served-model-name", "model", "--max-num-seqs", str(options.max_num_seqs)]
    command += ["--max-logprobs", str(MAX_LOGPROBS_OF_VLLM), "--dtype", options.dtype]
    command += ["--disable-uvicorn-access-log", "--disable-log-stats"]
    command += ["--max-model-len", str(options.max_model_len or "auto")]  # auto: what fits
    if options.gpu_memory_fraction is not None:
        command += ["--gpu-memory-utilization", str(options.gpu_memory_fraction)]
    if options.tensor_parallel_size != 1:
        command += ["--tensor-parallel-size", str(options.tensor_parallel_size)]
    return (*command, *options.extra_arguments)


_FORCED = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "0",
    "VLLM_DEBUG_LOG_API_SERVER_RESPONSE": "0",
    "VLLM_KEEP_ALIVE_ON_ENGINE_DEATH": "0",
    "VLLM_LOGGING_LEVEL": "INFO",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_SERVER_DEV_MODE": "0",  # it adds routes and logs stacks
    "VLLM_USE_RUST_FRONTEND": "0",  # not the server this file was tried with
}
_DEFAULTS = {"VLLM_CPU_KVCACHE_SPACE": "4"}  # GiB; only read where there is no GPU
_SECRET = re.compile(
    r"(^|_)(TOKEN|KEY|SECRET|PASSWORD|PASSPHRASE|CREDENTIALS?)(_|$)", re.IGNORECASE
)


def child_environment(base: Mapping[str, str], folder: Path, api_key: str) -> dict[str, str]:
    """What vLLM may see of this process's environment: nothing that is named like a secret."""
    kept = {name: value for name, value in base.items() if not _SECRET.search(name)}
    private = {"TMPDIR": str(folder), "VLLM_RPC_BASE_PATH": str(folder), "VLLM_API_KEY": api_key}
    defaults = dict(_DEFAULTS)
    if home := base.get("HOME"):
        # Torch would keep what it compiled in the temporary folder, and lose it with that.
        defaults["TORCHINDUCTOR_CACHE_DIR"] = f"{home}/.cache/vllm/torchinductor"
    return {**defaults, **kept, **_FORCED, **private}


class LogTail:
    """The last lines a process wrote. Lines that repeat requests or say nothing are dropped."""

    # After a crash vLLM writes what it was working on, sampling parameters included.
    _DROPPED = re.compile(
        r"dump_input|SamplingParams\(|prompt_token_ids|nanobind|^ - |leaked|\[shutdown\]"
    )
    _CAUSE = re.compile(r"(?:\b\w*(?:Error|Exception|Exit|Interrupt)|\berror): (.+)")

    def __init__(self, pipe: IO[bytes]) -> None:
        self._lines: deque[str] = deque(maxlen=N_LOG_LINES)
        self._thread = threading.Thread(target=self._read, args=(pipe,), daemon=True)
        self._thread.start()

    def _read(self, pipe: IO[bytes]) -> None:
        is_rest = False  # of a long line; it would escape the filter below
        with pipe:
            while block := pipe.readline(_LINE_BYTES):
                text = block.decode(errors="replace").rstrip()
                if text and not is_rest and not self._DROPPED.search(text):
                    self._lines.append(text)
                is_rest = not block.endswith(b"\n")

    def finish(self, timeout_s: float = 2.0) -> None:
        """Wait for the last lines of a process that has ended."""
        self._thread.join(timeout_s)

    def forget(self) -> None:
        """Drop what was written so far: an old error is not the cause of a later end."""
        self._lines.clear()

    def last(self, n_lines: int = 15) -> str:
        """The newest lines, oldest first."""
        return "\n".join(list(self._lines)[-n_lines:])

    def cause(self) -> str | None:
        """The first error still in sight: vLLM's later ones only say that there was one."""
        for line in list(self._lines):
            if " WARNING " not in line and (match := self._CAUSE.search(line)):
                return match.group(0)
        return None


class VllmProcess:
    """One running vLLM, its workers and its private folder, behind a `lifeline`."""

    def __init__(self, model_folder: Path, options: VllmOptions) -> None:
        """Start it; it is not ready yet.

        Raises:
            UsageError: vLLM is not installed, or an extra argument is veilrun's own to set.
        """
        executable = vllm_executable()
        if executable is None:
            raise UsageError(_NOT_INSTALLED)
        self.folder = _private_folder()
        self.socket = self.folder / "http"
        self.api_key = secrets.token_urlsafe(32)
        self._limit_s = options.stop_grace_s + _LIFELINE_S
        environment = child_environment(environment_without_secrets(), self.folder, self.api_key)
        try:
            command = serve_command(executable, model_folder, self.socket, options)
        except UsageError:
            self.folder.rmdir()
            raise
        lifeline = (sys.executable, "-I", "-S", _lifeline.__file__)
        self._child = subprocess.Popen(  # noqa: S603 - no shell; arguments are the operator's
            (*lifeline, str(options.stop_grace_s), str(self.folder), *command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # Ctrl-C is ours to pass on
        )
        self.log = LogTail(cast(IO[bytes], self._child.stdout))

    @property
    def pid(self) -> int:
        """The lifeline's process id; vLLM is its child."""
        return self._child.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; 128 plus the signal's number when a signal ended it."""
        return self._child.poll()

    async def wait(self) -> int:
        """Its exit code, once it has ended and nothing of it is left.

        Polled: asyncio's own wait also waits for every heir of the output pipe.
        """
        while (code := self.exit_code) is None:
            await asyncio.sleep(_POLL_S)
        return code

    async def stop(self) -> None:
        """Let go of the lifeline and wait until nothing is left. Harmless a second time."""
        with contextlib.suppress(BrokenPipeError):
            cast(IO[bytes], self._child.stdin).close()
        try:
            async with asyncio.timeout(self._limit_s):
                await self.wait()
        except TimeoutError:  # not even SIGKILL helped: a process hangs in the kernel
            self._child.kill()
        await asyncio.to_thread(self.log.finish)
        shutil.rmtree(self.folder, ignore_errors=True)


def _private_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="veilrun-"))  # mode 0700
    if len(str(folder)) > _LONGEST_FOLDER:
        folder.rmdir()
        folder = Path(tempfile.mkdtemp(prefix="veilrun-", dir="/tmp"))
    return folder
