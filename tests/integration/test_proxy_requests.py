"""What applications may ask for, who may ask, and how refusals look."""

from __future__ import annotations

import asyncio
import json

import aiohttp
import pytest
from openai import APIStatusError, AsyncOpenAI, AuthenticationError

from integration.proxied import MODEL, Proxied, proxied
from veilrun.serve.proxy import ProxySettings
from veilrun.serve.text import load_text_side

CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
COMPLETION = {"model": MODEL, "prompt": "hi", "max_tokens": 2}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}

REFUSED_IN_CHAT = {
    "tools": [TOOL],
    "functions": [TOOL["function"]],
    "tool_choice": "required",
    "function_call": {"name": "f"},
    "response_format": {"type": "json_object"},
    "modalities": ["text", "audio"],
    "audio": {"voice": "alloy", "format": "wav"},
    "prediction": {"type": "content", "content": "x"},
    "reasoning_effort": "high",
    "verbosity": "low",
    "web_search_options": {},
    "store": True,
    "service_tier": "priority",
    "stream_options": {"include_obfuscation": True},
    "top_logprobs": 3,
    "logprobs": 3,
    "max_completion_tokens": 5,
    "n": 17,
    "stop": ["a", "b", "c", "d", "e"],
    "temperature": 2.5,
    "top_p": 0,
    "logit_bias": {"512": 1},
    "seed": 2**63,
    "stream": "yes",
    "max_tokens": 0,
    "messages": [],
    "model": "",
    "temprature": 1,
    "prompt": "hi",
}
PATHS_IN_CHAT = {
    "stream_options": "stream_options.include_obfuscation",
    "max_completion_tokens": "max_tokens",
}
REFUSED_IN_COMPLETIONS = {
    "best_of": 2,
    "echo": True,
    "suffix": "the end",
    "logprobs": 21,
    "messages": CHAT["messages"],
    "max_completion_tokens": 3,
    "prompt": ["a", 1],
}
NEUTRAL = {
    "user": "me",
    "metadata": {"a": "b"},
    "store": False,
    "service_tier": "auto",
    "prompt_cache_key": "x",
    "safety_identifier": "y",
    "stop": None,
    "seed": None,
    "logit_bias": None,
    "stream_options": None,
    "unknown": None,
}
NEUTRAL_IN_CHAT = {
    "tools": [],
    "functions": None,
    "tool_choice": "none",
    "parallel_tool_calls": True,
    "response_format": {"type": "text"},
    "modalities": ["text"],
    "audio": None,
    "logprobs": False,
}
BAD_MESSAGES = {
    "messages[0].role": {"role": "tool", "content": "x", "tool_call_id": None},
    "messages[0].content": {"role": "user"},
    "messages[0].content[0].type": {
        "role": "user",
        "content": [{"type": "image_url", "image_url": {"url": "http://x/"}}],
    },
    "messages[0].content[0].text": {
        "role": "user",
        "content": [{"type": "text", "text": "\ud800"}],
    },
    "messages[0].tool_calls": {"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]},
    "messages[0].mood": {"role": "user", "content": "x", "mood": "good"},
    "messages[0]": "hi",
}


async def post(served: Proxied, path: str, body, **options) -> tuple[int, dict]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"} | options.pop("headers", {})
    async with (
        aiohttp.ClientSession() as session,
        session.post(served.base_url + path, data=data, headers=headers, **options) as response,
    ):
        return response.status, await response.json()


async def refusal(served: Proxied, path: str, body, **options) -> dict:
    status, reply = await post(served, path, body, **options)
    assert status == 400, reply
    assert set(reply) == {"error"}
    assert set(reply["error"]) == {"message", "type", "param", "code"}
    assert reply["error"]["type"] == "invalid_request_error"
    assert served.node.requests == []
    return reply["error"]


async def test_every_unsupported_field_of_chat_is_named(served: Proxied):
    for name, value in REFUSED_IN_CHAT.items():
        error = await refusal(served, "/v1/chat/completions", CHAT | {name: value})
        assert error["param"] == PATHS_IN_CHAT.get(name, name)
        assert error["param"] in error["message"]


async def test_every_unsupported_field_of_completions_is_named(served: Proxied):
    for name, value in REFUSED_IN_COMPLETIONS.items():
        error = await refusal(served, "/v1/completions", COMPLETION | {name: value})
        assert error["param"] in (name, f"{name}[1]")


async def test_bad_messages_are_named(served: Proxied):
    for path, message in BAD_MESSAGES.items():
        error = await refusal(served, "/v1/chat/completions", CHAT | {"messages": [message]})
        assert error["param"] == path


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"hi"', b"\xff", b"[" * 100_000, b"{}"])
async def test_bodies_that_are_no_request(served: Proxied, body):
    await refusal(served, "/v1/chat/completions", body)
    await refusal(served, "/v1/completions", body)


@pytest.mark.parametrize(
    "prompt", [[], [[]], [[1], 2], [-1], [1.5], [True], [512], {}, ["x"] * 129]
)
async def test_prompts_that_are_none(served: Proxied, prompt):
    error = await refusal(served, "/v1/completions", COMPLETION | {"prompt": prompt})
    assert error["param"].startswith("prompt")


async def test_neutral_values_change_nothing(served: Proxied):
    assert (await post(served, "/v1/completions", COMPLETION | NEUTRAL))[0] == 200
    assert (await post(served, "/v1/chat/completions", CHAT | NEUTRAL | NEUTRAL_IN_CHAT))[0] == 200
    answered = {"role": "assistant", "content": "x", "refusal": None, "annotations": []}
    messages = [
        *CHAT["messages"],
        answered | {"audio": None, "tool_calls": None},
        *CHAT["messages"],
    ]
    assert (await post(served, "/v1/chat/completions", CHAT | {"messages": messages}))[0] == 200
    first, *others = [one.sampling_params for one in served.node.requests]
    assert all(one == first for one in others)


async def test_an_answer_can_be_sent_back_as_it_came(served: Proxied, openai: AsyncOpenAI):
    served.say("Fine.")
    first = await openai.chat.completions.create(**CHAT | {"max_tokens": 9})
    assert first.choices[0].message.content == "Fine."
    messages = [*CHAT["messages"], first.choices[0].message, *CHAT["messages"]]
    await openai.chat.completions.create(model=MODEL, messages=messages, max_tokens=2)
    heard = served.text_side._backend.decode(list(served.heard()))
    assert first.choices[0].message.content in heard


async def test_a_template_may_refuse(served: Proxied):
    messages = [*CHAT["messages"], {"role": "system", "content": "late"}]
    error = await refusal(served, "/v1/chat/completions", CHAT | {"messages": messages})
    assert "the system message comes first" in error["message"]


async def test_a_model_without_a_template_cannot_chat(stories, kit, identity_folder):
    async with proxied(load_text_side(stories, MODEL), kit, identity_folder) as served:
        error = await refusal(served, "/v1/chat/completions", CHAT)
        assert "no chat template" in error["message"] and error["param"] == "messages"
        assert (await post(served, "/v1/completions", COMPLETION))[0] == 200


async def test_a_prompt_beyond_the_context(served: Proxied):
    long = [{"role": "user", "content": "once upon a time " * 200}]
    error = await refusal(served, "/v1/chat/completions", CHAT | {"messages": long})
    assert (error["code"], error["param"]) == ("context_length_exceeded", "messages")
    error = await refusal(served, "/v1/completions", COMPLETION | {"prompt": [5] * 512})
    assert (error["code"], error["param"]) == ("context_length_exceeded", "prompt")
    assert (await post(served, "/v1/completions", COMPLETION | {"prompt": [5] * 511}))[0] == 200


async def test_the_nodes_context_counts_too(served: Proxied):
    served.node.max_model_len = 20
    error = await refusal(served, "/v1/completions", COMPLETION | {"prompt": [5] * 20})
    assert "20 tokens" in error["message"]


async def test_long_prompts_are_encoded_beside_the_loop(served: Proxied):
    body = COMPLETION | {"prompt": "once upon a time " * 20_000}
    error = await refusal(served, "/v1/completions", body)
    assert error["code"] == "context_length_exceeded"


async def test_other_models_are_404(served: Proxied, openai: AsyncOpenAI):
    with pytest.raises(APIStatusError) as caught:
        await openai.chat.completions.create(**CHAT | {"model": "gpt-4"})
    assert (caught.value.status_code, caught.value.code) == (404, "model_not_found")
    assert caught.value.param == "model"


async def test_other_paths_and_methods_have_the_error_shape(served: Proxied):
    async with aiohttp.ClientSession() as session:
        for method, path, status in (
            ("GET", "/", 404),
            ("POST", "/v1/embeddings", 404),
            ("GET", "/v1/completions", 405),
            ("OPTIONS", "/v1/completions", 405),
            ("POST", "/metrics", 404),
        ):
            async with session.request(method, served.base_url + path) as response:
                assert response.status == status
                assert (await response.json())["error"]["type"] == "invalid_request_error"


async def test_big_bodies_are_413(text_side, kit, identity_folder):
    settings = ProxySettings(max_body_bytes=1000)
    async with proxied(text_side, kit, identity_folder, settings=settings) as served:
        status, reply = await post(served, "/v1/completions", b" " * 1001)
        assert status == 413 and "error" in reply


async def test_web_pages_cannot_reach_a_local_proxy(served: Proxied):
    for host in ("evil.example", "evil.example:8080", "127.0.0.1.evil.example", "10.0.0.1", ""):
        status, reply = await post(served, "/v1/completions", COMPLETION, headers={"Host": host})
        assert (status, reply["error"]["code"]) == (403, "host_not_allowed")
    for host in ("localhost", "localhost:1", "127.0.0.1:99", "[::1]:8080", "LOCALHOST"):
        status, _ = await post(served, "/v1/completions", COMPLETION, headers={"Host": host})
        assert status == 200
    # A page may send these without asking the browser, so they are no JSON requests.
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        status, _ = await post(
            served, "/v1/completions", COMPLETION, headers={"Content-Type": kind}
        )
        assert status == 415
    async with aiohttp.ClientSession() as session:
        ask = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
        url = f"{served.base_url}/v1/completions"
        async with session.options(url, headers=ask) as response:
            assert not [one for one in response.headers if one.lower().startswith("access-control")]


async def test_api_key(text_side, kit, identity_folder):
    settings = ProxySettings(host="0.0.0.0", api_key="sesame-ä")
    async with proxied(text_side, kit, identity_folder, settings=settings) as served:
        for given in ("Bearer wrong", "Bearer ", "sesame-ä", "Basic sesame-ä"):
            headers = {"Authorization": given}
            status, reply = await post(served, "/v1/completions", COMPLETION, headers=headers)
            assert (status, reply["error"]["code"]) == (401, "invalid_api_key")
            assert "sesame" not in json.dumps(reply)
        for scheme in ("Bearer", "bearer", "BEARER"):  # RFC 9110: its case means nothing
            headers = {"Authorization": f"{scheme} sesame-ä", "Host": "proxy.example"}
            assert (await post(served, "/v1/completions", COMPLETION, headers=headers))[0] == 200
        async with AsyncOpenAI(
            base_url=f"{served.base_url}/v1", api_key="x", max_retries=0
        ) as openai:
            with pytest.raises(AuthenticationError):
                await openai.models.list()
        async with aiohttp.ClientSession() as session:
            async with session.get(f"{served.base_url}/health") as response:
                assert await response.json() == {"status": "ok"}


async def test_nothing_of_a_conversation_is_logged(served: Proxied, openai, caplog):
    caplog.set_level(0)
    served.say("topsecretanswer")
    messages = [{"role": "user", "content": "topsecretprompt"}]
    for fault in (None, "garbage", "foreign ids", "dies"):
        served.node.fault = fault
        for stream in (False, True):
            try:
                reply = await openai.chat.completions.create(
                    model=MODEL, messages=messages, stream=stream
                )
                _ = [chunk async for chunk in reply] if stream else None
            except Exception:  # noqa: BLE001
                await asyncio.sleep(0)
    logged = "".join(
        record.getMessage() for record in caplog.records if record.name.startswith("veilrun")
    )
    assert "VerificationError" in logged
    assert "topsecret" not in logged
