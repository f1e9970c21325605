"""How a request ends: its client leaves, someone aborts it, the engine breaks, the node stops."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest

from unit.node.steps import ABORT, GENERATE, Node, events, request, running, until
from veilrun.errors import BusyError, TransportError, UsageError
from veilrun.node import exchange
from veilrun.node.server import ServerLimits
from veilrun.wire.generate import decode_response


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    async with running() as node:
        yield node


# --- leaving, aborting, ending ------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_stops_its_generation(node: Node, stream: bool) -> None:
    task = asyncio.create_task(node.generate(stream=stream, sampling_params={"max_tokens": 60}))
    await until(lambda: node.engine.n_active == 1)
    node.engine.step(2)
    await asyncio.sleep(0.02)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await until(lambda: node.engine.n_active == 0)
    assert await node.metric('requests_total{outcome="disconnected"}') == 1
    assert await node.metric("answers_running") == 0


async def test_a_client_that_leaves_the_queue_frees_its_place() -> None:
    async with running(ServerLimits(max_running=1, max_queued=1)) as node:
        first = asyncio.create_task(node.generate())
        await until(lambda: node.engine.n_active == 1)
        second = asyncio.create_task(node.generate())
        await until(lambda: node.server._running.n_waiting == 1)
        second.cancel()
        await until(lambda: node.server._running.n_waiting == 0)
        node.engine.run_freely()
        assert (await first)[0] == 200


async def test_abort_by_the_prefixed_id_ends_a_stream(node: Node) -> None:
    body = request(
        stream=True, request_id="r", stream_options={"include_usage": True},
        sampling_params={"max_tokens": 60, "n": 2},
    )  # fmt: skip
    posting = asyncio.create_task(node.session.post(GENERATE, json=body))
    node.engine.step(2)
    answer = await posting
    await answer.content.readuntil(b"\n\n")
    async with node.session.post(ABORT, json={"request_ids": ["r"]}) as unprefixed:
        assert unprefixed.status == 200
    await asyncio.sleep(0.02)
    assert node.engine.n_active == 1
    ids = {"request_ids": ["nobody's", "generate-tokens-r"]}
    async with node.session.post(ABORT, json=ids) as aborting:
        assert (aborting.status, await aborting.read()) == (200, b"")
    *chunks, done = await events(answer)
    assert done == "[DONE]"
    *_, a, b, usage = [json.loads(one) for one in chunks]
    ends = [(one["choices"][0]["index"], one["choices"][0]["finish_reason"]) for one in (a, b)]
    assert ends == [(0, "abort"), (1, "abort")]
    assert usage["usage"]["completion_tokens"] == 4
    assert node.engine.n_active == 0
    assert await node.metric('requests_total{outcome="aborted"}') == 1


async def test_abort_ends_a_whole_answer_with_what_there_is(node: Node) -> None:
    task = asyncio.create_task(
        node.generate(request_id="r", sampling_params={"max_tokens": 60, "logprobs": 1})
    )
    node.engine.step(2)
    await until(lambda: node.engine._steps.locked() and node.engine.n_active == 1)
    await asyncio.sleep(0.02)
    await node.session.post(ABORT, json={"request_ids": ["generate-tokens-r"]})
    status, body, _ = await task
    assert status == 200
    (choice,) = decode_response(json.dumps(body).encode()).choices
    assert (choice.token_ids, choice.finish_reason) == ((10, 11), "abort")
    assert len(choice.logprobs or ()) == 2


async def test_abort_of_a_request_that_waits(node: Node) -> None:
    async with running(ServerLimits(max_running=1)) as node:
        first = asyncio.create_task(node.generate())
        await until(lambda: node.engine.n_active == 1)
        second = asyncio.create_task(node.generate(request_id="r"))
        await until(lambda: node.server._running.n_waiting == 1)
        await node.session.post(ABORT, json={"request_ids": ["generate-tokens-r"]})
        _, body, _ = await second
        assert body["choices"][0]["finish_reason"] == "abort"
        node.engine.run_freely()
        assert (await first)[1]["choices"][0]["finish_reason"] == "length"


async def test_a_client_that_reads_nothing_is_taken_for_gone(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "_READ_S", 0.1)
    node.engine.run_freely()
    url = node.session._base_url
    body = json.dumps(request(stream=True, sampling_params={"max_tokens": 10**6})).encode()
    _, writer = await asyncio.open_connection(url.host, url.port)
    head = f"POST {GENERATE} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    await until(lambda: node.engine.n_active == 1)
    await until(lambda: node.engine.n_active == 0, 20)
    assert await node.metric('requests_total{outcome="disconnected"}') == 1
    writer.close()


async def test_abort_with_a_bad_body_is_400(node: Node) -> None:
    for bad in ({}, {"request_ids": "r"}, {"request_ids": [1]}, {"request_ids": [], "x": 1}):
        async with node.session.post(ABORT, json=bad) as answer:
            assert answer.status == 400


async def test_draining_refuses_new_requests_and_waits_for_the_old(node: Node) -> None:
    old = asyncio.create_task(node.generate())
    await until(lambda: node.engine.n_active == 1)
    draining = asyncio.create_task(node.server.drain(5))
    await asyncio.sleep(0.02)
    status, _, headers = await node.generate()
    assert status == 503
    assert "Retry-After" in headers
    async with node.session.get("/health") as answer:
        assert answer.status == 503
    assert not draining.done()
    node.engine.run_freely()
    assert (await old)[0] == 200
    assert await draining


async def test_draining_tells_when_the_time_was_too_short(node: Node) -> None:
    old = asyncio.create_task(node.generate())
    await until(lambda: node.engine.n_active == 1)
    assert not await node.server.drain(0.03)
    node.engine.run_freely()
    assert (await old)[0] == 200


# --- an engine in trouble -----------------------------------------------------------------


async def test_an_engine_that_is_not_ready_is_503(node: Node) -> None:
    node.engine.ready = False
    status, body, headers = await node.generate()
    assert (status, body["error"]["type"]) == (503, "server_error")
    assert int(headers["Retry-After"]) >= 1
    async with node.session.get("/health") as answer:
        assert answer.status == 503
    assert await node.metric("engine_ready") == 0


@pytest.mark.parametrize(
    ("error", "status", "outcome"),
    [
        (BusyError("x", 3.0), 503, "unavailable"),
        (UsageError("x"), 400, "invalid"),
        (TransportError("x"), 502, "failed"),
        (RuntimeError("secret 123"), 500, "failed"),
        (ConnectionResetError("secret 123"), 500, "failed"),  # not the client's connection
        (TimeoutError("secret 123"), 500, "failed"),
    ],
)
async def test_errors_of_the_engine_before_the_first_token(
    node: Node, error: Exception, status: int, outcome: str
) -> None:
    node.engine.error = error
    node.engine.run_freely()
    for stream in (False, True):
        got, body, _ = await node.generate(stream=stream)
        assert got == status
        assert "secret" not in json.dumps(body)
    assert await node.metric(f'requests_total{{outcome="{outcome}"}}') == 2


async def test_errors_of_the_engine_in_mid_stream_are_events(node: Node) -> None:
    posting = asyncio.create_task(node.session.post(GENERATE, json=request(stream=True)))
    node.engine.step()
    answer = await posting
    await answer.content.readuntil(b"\n\n")
    node.engine.error = RuntimeError("secret 123")
    node.engine.step()
    error, done = await events(answer)
    assert done == "[DONE]"
    assert json.loads(error)["error"]["code"] == "engine_failed"
    assert "secret" not in error
    assert await node.metric('requests_total{outcome="failed"}') == 1


@pytest.mark.parametrize("kind", [RuntimeError, ValueError, OSError, ConnectionError, TimeoutError])
@pytest.mark.parametrize(
    ("method", "path", "part"),
    [
        ("POST", GENERATE, "decode_request"),
        ("POST", ABORT, "decode_aborts"),
        ("GET", "/v1/models", "encode_card"),
        ("GET", "/metrics", "Metrics.render"),
    ],
)
async def test_our_own_faults_are_500_and_tell_nothing(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    method: str,
    path: str,
    part: str,
    kind: type[Exception],
) -> None:
    def fail(*_: Any, **__: Any) -> str:
        raise kind("secret 123")

    monkeypatch.setattr(f"veilrun.node.server.{part}", fail)
    async with running() as node:
        async with node.session.request(
            method, path, data=b"{}" if method == "POST" else None
        ) as answer:
            assert answer.status == 500
            assert (await answer.json())["error"]["code"] == "internal_error"
            assert "secret" not in await answer.text()
    assert f"a request failed with {kind.__name__}" in caplog.text
    assert "secret" not in caplog.text


async def test_a_body_that_is_not_as_encoded_as_it_says_is_400(node: Node) -> None:
    headers = {"Content-Encoding": "deflate"}
    async with node.session.post(GENERATE, data=b"no deflate", headers=headers) as answer:
        assert answer.status == 400
        assert (await answer.json())["error"]["code"] == "invalid_request"


async def test_what_is_not_http_is_not_quoted_in_the_log(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    url = node.session._base_url
    for garbage in (b"secret\r\n\r\n", b"GET / HTTP/1.1\r\nsecret\r\n\r\n", b"\x16\x03\x01secret"):
        reader, writer = await asyncio.open_connection(url.host, url.port)
        writer.write(garbage)
        writer.write_eof()
        await reader.read()
        writer.close()
    assert "secret" not in caplog.text
    assert (await node.session.get("/health")).status == 200
