"""vLLM's command line, environment and log, without starting anything."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from veilrun.errors import UsageError
from veilrun.node.vllm_process import (
    N_LOG_LINES,
    LogTail,
    VllmOptions,
    child_environment,
    serve_command,
    vllm_available,
    vllm_executable,
)


def command(**options: object) -> str:
    return " ".join(serve_command(Path("/x/vllm"), Path("/m"), Path("/s"), VllmOptions(**options)))


def test_options_become_arguments() -> None:
    assert "--max-model-len auto" in command()
    assert "--gpu-memory-utilization" not in command()
    full = command(
        max_model_len=99,
        max_num_seqs=3,
        dtype="float32",
        gpu_memory_fraction=0.5,
        tensor_parallel_size=2,
        extra_arguments=("--enforce-eager",),
    )
    for part in (
        "--max-model-len 99",
        "--max-num-seqs 3",
        "--dtype float32",
        "--gpu-memory-utilization 0.5",
        "--tensor-parallel-size 2",
    ):
        assert part in full
    assert full.endswith(" --enforce-eager")


@pytest.mark.parametrize(
    "argument",
    ["--host=0.0.0.0", "--api-key", "--api_key", "--enable-log-req", "--trust-remote-code", "--ho"],
)
def test_arguments_that_are_veilruns_own_are_refused(argument: str) -> None:
    with pytest.raises(UsageError, match="set by veilrun"):
        command(extra_arguments=("--seed", "3", argument))


@pytest.mark.parametrize("argument", ["--hf-overrides={}", "-tp", "--", "0.0.0.0", "--seed"])
def test_other_arguments_pass(argument: str) -> None:
    assert command(extra_arguments=(argument,)).endswith(argument)


def test_the_environment_keeps_settings_and_drops_secrets() -> None:
    base = {
        "PATH": "/bin",
        "HOME": "/home/one",
        "TOKENIZERS_PARALLELISM": "false",
        "VLLM_CPU_KVCACHE_SPACE": "7",
        "HF_HUB_OFFLINE": "0",
        "VLLM_SERVER_DEV_MODE": "1",
        "HF_TOKEN": "x",
        "some_password": "x",
        "GOOGLE_APPLICATION_CREDENTIALS": "x",
        "AWS_ACCESS_KEY_ID": "x",
    }
    seen = child_environment(base, Path("/private"), "the key")
    assert "x" not in seen.values()
    assert seen["PATH"] == "/bin" and seen["TOKENIZERS_PARALLELISM"] == "false"
    assert seen["VLLM_CPU_KVCACHE_SPACE"] == "7"
    assert seen["HF_HUB_OFFLINE"] == "1" and seen["VLLM_SERVER_DEV_MODE"] == "0"
    assert seen["TMPDIR"] == "/private" and seen["VLLM_API_KEY"] == "the key"
    assert seen["TORCHINDUCTOR_CACHE_DIR"].startswith("/home/one/")


def test_the_log_is_bounded_and_repeats_no_request() -> None:
    read, write = os.pipe()
    log = LogTail(os.fdopen(read, "rb"))
    with os.fdopen(write, "wb") as pipe:
        pipe.write(b"line\n" * 5000)
        pipe.write(b"ERROR dump_input.py: " + b"logit_bias={77: 1.0} " * 200 + b"\n")
        pipe.write(b"x" * 5000 + b"ValueError: the tail of a long line\n")
        pipe.write(b"WARNING nothing serious\nKeyError: 'here'\nRuntimeError: see above")
    log.finish()
    kept = log.last(10**6)
    assert len(kept.splitlines()) == N_LOG_LINES
    assert "77" not in kept and "tail" not in kept
    assert max(map(len, kept.splitlines())) <= 500
    assert log.last(2).splitlines() == ["KeyError: 'here'", "RuntimeError: see above"]
    assert log.cause() == "KeyError: 'here'"
    log.forget()
    assert log.cause() is None and log.last() == ""


def test_vllm_is_looked_for_beside_python_and_on_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside, elsewhere = tmp_path / "venv" / "bin", tmp_path / "elsewhere"
    for folder in (beside, elsewhere):
        folder.mkdir(parents=True)
    monkeypatch.setattr("sys.executable", str(beside / "python"))
    monkeypatch.setenv("PATH", str(elsewhere))
    assert vllm_executable() is None
    assert "pip install vllm" in (vllm_available() or "")
    for folder in (elsewhere, beside):
        (folder / "vllm").touch(mode=0o755)
        assert vllm_executable() == folder / "vllm"
    assert vllm_available() is None
