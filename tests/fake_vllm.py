"""A stand-in for the `vllm` command: serves the JSON that vLLM documents, misbehaves on call.

Tests write it to a folder as an executable named `vllm`. FAKE_VLLM says how it behaves as a
whole; the first id of a prompt (see `DEFECTS`) how it answers that request. What it was started
with goes to the file FAKE_VLLM_RECORD; the requests it got, one JSON line each, to that name
plus `.requests`.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

from aiohttp import web

DEFECTS = {
    "dies": 10,
    "garbage": 11,
    "ends early": 12,
    "breaks": 13,
    "refuses": 14,
    "refuses in the stream": 15,
    "fails in the stream": 16,
    "never ends": 17,
    "long line": 18,
    "wrong shape": 19,
    "no such path": 20,
    "garbage later": 21,
}

LAST_WORDS = (
    1000 * "a line\n"
    + """\
(APIServer) WARNING ValueError: this one is harmless
(EngineCore) ERROR ValueError: no memory left for the cache
(EngineCore) ERROR RuntimeError: Engine core initialization failed
"""
)


def install(folder: Path) -> Path:
    """Write the executable to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / "vllm"
    target.write_text(f"#!{sys.executable}\n{Path(__file__).read_text()}")
    target.chmod(target.stat().st_mode | stat.S_IXUSR)
    return target


async def _generate(http: web.Request) -> web.StreamResponse:
    body = await http.json()
    record = Path(os.environ["FAKE_VLLM_RECORD"] + ".requests")
    with record.open("a") as file:
        file.write(json.dumps(body) + "\n")
    first = body["token_ids"][0]
    if http.headers.get("Authorization") != "Bearer " + os.environ["VLLM_API_KEY"]:
        return web.json_response({"error": "Unauthorized"}, status=401)
    for name, status in (("breaks", 500), ("refuses", 400), ("no such path", 404)):
        if first == DEFECTS[name]:
            return web.json_response(_error(status), status=status)
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(http)
    try:
        await _stream(response, body, first)
    except (ConnectionError, asyncio.CancelledError):
        record.with_suffix(".gone").touch()
        raise
    return response


async def _stream(response: web.StreamResponse, body: dict[str, Any], first: int) -> None:
    async def send(data: Any) -> None:
        text = data if isinstance(data, str) else json.dumps(data)
        await response.write(f"data: {text}\n\n".encode())

    at_once = {
        DEFECTS["refuses in the stream"]: _error(400),
        DEFECTS["garbage"]: "{",
        DEFECTS["wrong shape"]: {"request_id": "x", "choices": [{"index": 0, "token_ids": ["a"]}]},
        DEFECTS["long line"]: _chunk([*range(300_000)], "length"),
    }
    if first in at_once:
        await send(at_once[first])
    elif first < 100:
        await send(_chunk([1]))
        if first == DEFECTS["dies"]:
            os._exit(9)
        if first == DEFECTS["ends early"]:
            return
        later = {DEFECTS["garbage later"]: "{", DEFECTS["fails in the stream"]: _error(500)}
        if first in later:
            await send(later[first])
        while first == DEFECTS["never ends"]:
            await send(_chunk([2]))
            await asyncio.sleep(0.02)
    else:
        params = body["sampling_params"]
        for place in range(params["max_tokens"]):
            ended = "length" if place + 1 == params["max_tokens"] else None
            await send(_chunk([first + place], ended, logprobs=params["logprobs"]))
    await send("[DONE]")


def _chunk(ids: list[int], ended: str | None = None, logprobs: int | None = None) -> dict[str, Any]:
    content = None
    if logprobs is not None:  # the chosen token first, then by rank, as vLLM does
        top = [{"token_id": ids[0], "logprob": -9.0, "rank": 40}]
        top += [{"token_id": n, "logprob": -float(n), "rank": n} for n in range(1, logprobs)]
        content = {"content": [{**top[0], "top_logprobs": top}]}
    choice = {"index": 0, "token_ids": ids, "finish_reason": ended, "logprobs": content}
    return {"request_id": "x", "choices": [choice], "usage": None}


def _error(status: int) -> dict[str, Any]:
    return {"error": {"message": "the fake's words", "type": "x", "param": None, "code": status}}


async def _models(_: web.Request) -> web.Response:
    return web.json_response({"object": "list", "data": [{"id": "model", "max_model_len": 48}]})


def main() -> None:
    """Behave as FAKE_VLLM says."""
    behaviour = os.environ["FAKE_VLLM"]
    record = {"arguments": sys.argv, "environment": dict(os.environ), "pid": os.getpid()}
    if behaviour == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        record["worker"] = worker.pid
    Path(os.environ["FAKE_VLLM_RECORD"]).write_text(json.dumps(record))
    if behaviour == "broken":
        sys.stdout.write(LAST_WORDS)
        sys.exit(3)
    sys.stdout.write("(APIServer) ERROR ValueError: an old one\n")
    sys.stdout.flush()
    app = web.Application()
    app.router.add_get("/v1/models", _models)
    app.router.add_post("/inference/v1/generate", _generate)
    if behaviour != "never healthy":
        app.router.add_get("/health", lambda _: web.Response())
    path = sys.argv[sys.argv.index("--uds") + 1]
    web.run_app(app, path=path, print=None, handle_signals=behaviour != "stubborn")


if __name__ == "__main__":
    main()
