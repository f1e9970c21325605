"""What the HTTP surface answers, what it refuses, and what it tells of itself."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest

from unit.node.steps import ABORT, GENERATE, MANIFEST, Node, events, request, running, until
from veilrun.node.server import ServerLimits
from veilrun.wire.generate import decode_response
from veilrun.wire.manifest import decode_card


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    async with running() as node:
        yield node


# --- answers ------------------------------------------------------------------------------


async def test_whole_answer(node: Node) -> None:
    node.engine.run_freely()
    status, body, headers = await node.generate(
        request_id="mine", sampling_params={"max_tokens": 3, "n": 2, "logprobs": 0}
    )
    assert status == 200
    assert headers["Server"] == "veilrun-node"
    response = decode_response(json.dumps(body).encode())
    assert response.request_id == "generate-tokens-mine"
    assert [one.token_ids for one in response.choices] == [(10, 11, 12)] * 2
    assert [one.finish_reason for one in response.choices] == ["length"] * 2
    assert [len(one.logprobs or ()) for one in response.choices] == [3, 3]
    assert body["usage"] == {"prompt_tokens": 3, "completion_tokens": 6, "total_tokens": 9}


@pytest.mark.parametrize("include_usage", [False, True])
async def test_stream_is_events_then_usage_then_done(node: Node, include_usage: bool) -> None:
    node.engine.run_freely()
    body = request(stream=True, stream_options={"include_usage": include_usage})
    async with node.session.post(GENERATE, json=body) as answer:
        assert answer.status == 200
        assert answer.content_type == "text/event-stream"
        *chunks, done = await events(answer)
    assert done == "[DONE]"
    parsed = [json.loads(one) for one in chunks]
    if include_usage:
        last = parsed.pop()
        assert last["choices"] == []
        assert last["usage"]["completion_tokens"] == 3
    assert [one["choices"][0]["token_ids"] for one in parsed] == [[10], [11], [12]]
    assert [one["choices"][0]["finish_reason"] for one in parsed] == [None, None, "length"]
    assert all(one["usage"] is None for one in parsed)


async def test_stream_sends_each_token_when_it_comes(node: Node) -> None:
    async with asyncio.timeout(5):
        posting = asyncio.create_task(node.session.post(GENERATE, json=request(stream=True)))
        node.engine.step()
        answer = await posting
        first = await answer.content.readuntil(b"\n\n")
        assert json.loads(first[6:])["choices"][0]["token_ids"] == [10]
        node.engine.run_freely()
        await answer.read()


async def test_request_ids_are_made_up_when_the_client_names_none(node: Node) -> None:
    node.engine.run_freely()
    (_, one, _), (_, two, _) = [await node.generate() for _ in range(2)]
    assert one["request_id"] != two["request_id"]
    assert one["request_id"].startswith("generate-tokens-")


# --- refusals -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "status", "part"),
    [
        (b"not json", 400, "not JSON"),
        (request(token_ids=[]), 400, "token_ids"),
        (request(token_ids=["a"]), 400, "token_ids"),
        (request(token_ids=[-1]), 400, "token_ids"),
        (request(token_ids=[90]), 400, "outside the vocabulary of 90"),
        (request(token_ids=[1] * 64), 400, "no room"),
        (request(prompt="hello"), 400, "prompt"),
        (request(sampling_params={"stop": ["x"]}), 400, "stop"),
        (request(sampling_params={"n": 5}), 400, "n: 5"),
        (request(sampling_params={"logit_bias": {"90": 1.0}}), 400, "logit_bias"),
        (request(sampling_params={"stop_token_ids": [1 << 40]}), 400, "stop_token_ids"),
        (request(sampling_params={"temperature": float("nan")}), 400, "temperature"),
        (request(model="another"), 404, "another model"),
    ],
)
async def test_bad_requests_never_reach_the_engine(
    node: Node, body: Any, status: int, part: str
) -> None:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with node.session.post(GENERATE, data=data) as answer:
        assert answer.status == status
        error = (await answer.json())["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert part in error["message"]
    assert await node.metric('requests_total{outcome="invalid"}') == 1


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("GET", GENERATE),
        ("POST", "/health"),
        ("HEAD", "/health"),
        ("OPTIONS", GENERATE),
        ("POST", "/v1/completions"),
        ("POST", "/v1/chat/completions"),
        ("POST", "/invocations"),
        ("POST", "/tokenize"),
        ("GET", "/openapi.json"),
        ("GET", "/version"),
        ("POST", "/abort_requests"),
        ("GET", "/v1/models/"),
        ("GET", "/inference/v1/generate/../../../health/x"),
    ],
)
async def test_everything_else_is_404(node: Node, method: str, path: str) -> None:
    async with node.session.request(method, path) as answer:
        assert answer.status == 404
        if method != "HEAD":
            assert (await answer.json())["error"]["type"] == "not_found_error"


async def test_body_over_the_limit_is_413() -> None:
    async with running(ServerLimits(max_body_bytes=1000)) as node:
        async with node.session.post(GENERATE, data=b" " * 2000) as answer:
            assert answer.status == 413
            assert (await answer.json())["error"]["code"] == "body_too_large"


async def test_body_that_never_comes_is_408() -> None:
    async def slowly() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(10)

    async with running(ServerLimits(body_timeout_s=0.05)) as node:
        async with node.session.post(GENERATE, data=slowly()) as answer:
            assert answer.status == 408


async def test_a_full_queue_is_429_with_a_time_to_come_back() -> None:
    async with running(ServerLimits(max_running=2, max_queued=1)) as node:
        first = asyncio.create_task(node.generate(sampling_params={"n": 2, "max_tokens": 3}))
        await until(lambda: node.engine.n_active == 1)
        second = asyncio.create_task(node.generate())
        await until(lambda: node.server._running.n_waiting == 1)
        status, body, headers = await node.generate()
        assert status == 429
        assert body["error"]["type"] == "rate_limit_error"
        assert int(headers["Retry-After"]) >= 1
        assert await node.metric("requests_queued") == 1
        assert await node.metric("answers_running") == 2
        node.engine.run_freely()
        assert (await first)[0] == (await second)[0] == 200
        assert (await node.generate())[0] == 200


async def test_more_answers_than_run_at_a_time_is_400() -> None:
    async with running(ServerLimits(max_running=2)) as node:
        status, body, _ = await node.generate(sampling_params={"n": 3})
        assert status == 400
        assert "the limit is 2" in body["error"]["message"]


# --- keys ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic right"}, {"X-Key": "right"}],
)
async def test_without_the_key_only_health_answers(headers: dict[str, str]) -> None:
    async with running(api_key="right") as node:
        for method, path in (("POST", GENERATE), ("POST", ABORT), ("GET", "/v1/models"),
                             ("GET", "/metrics"), ("GET", "/nothing")):  # fmt: skip
            async with node.session.request(method, path, headers=headers) as answer:
                assert answer.status == 401
                assert (await answer.json())["error"]["type"] == "authentication_error"
        async with node.session.get("/health", headers=headers) as answer:
            assert answer.status == 200


async def test_with_the_key_everything_answers() -> None:
    async with running(api_key="right") as node:
        node.engine.run_freely()
        headers = {"Authorization": "Bearer right"}
        async with node.session.post(GENERATE, json=request(), headers=headers) as answer:
            assert answer.status == 200


# --- what a node tells --------------------------------------------------------------------


async def test_card_and_health(node: Node) -> None:
    async with node.session.get("/v1/models") as answer:
        card = decode_card(await answer.read())
    assert (card.model, card.engine, card.max_model_len) == ("m", "steps", 64)
    assert card.manifest == MANIFEST
    async with node.session.get("/health") as answer:
        assert answer.status == 200


async def test_metrics_count_requests_tokens_and_seconds(node: Node) -> None:
    node.engine.run_freely()
    for _ in range(2):
        await node.generate()
    assert await node.metric('requests_total{outcome="answered"}') == 2
    assert await node.metric("tokens_in_total") == 6
    assert await node.metric("tokens_out_total") == 6
    assert await node.metric("request_seconds_count") == 2
    assert await node.metric('request_seconds_bucket{le="+Inf"}') == 2
    async with node.session.get("/metrics") as answer:
        text = await answer.text()
    assert "length" not in text
    kinds = [line.split()[3] for line in text.splitlines() if line.startswith("# TYPE")]
    assert kinds.count("histogram") == 1  # of seconds; never of lengths


async def test_logs_hold_neither_ids_nor_bodies(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    node.engine.run_freely()
    await node.generate(token_ids=[77, 66, 55], request_id="canary")
    await node.generate(token_ids=[777777], request_id="canary")
    node.engine.error = RuntimeError("token 777777")
    await node.generate(token_ids=[77, 66, 55], request_id="canary")
    ours = [one.getMessage() for one in caplog.records if one.name.startswith("veilrun")]
    assert len(ours) == 4
    for text in ours:
        assert not any(mark in text for mark in ("77", "66", "55", "canary"))
