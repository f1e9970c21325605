"""The proxy as applications use it: the openai client, real sockets, a well-behaved node."""

from __future__ import annotations

import asyncio
import json

import aiohttp
import pytest
from openai import AsyncOpenAI, NotFoundError

from integration.proxied import EOS_ID, MODEL, Proxied, eventually
from veilrun.types import EE

ASK = [{"role": "user", "content": "Tell me a story"}]
STORY = "Once upon a time, there was a 🦄 named Zoë. She ate 寿司!"


async def chat(openai: AsyncOpenAI, **options):
    return await openai.chat.completions.create(model=MODEL, messages=ASK, **options)


async def chunks_of(openai: AsyncOpenAI, **options) -> list:
    stream = await openai.chat.completions.create(model=MODEL, messages=ASK, stream=True, **options)
    return [chunk async for chunk in stream]


def text_of(chunks: list, index: int = 0) -> str:
    return "".join(
        choice.delta.content or ""
        for chunk in chunks
        for choice in chunk.choices
        if choice.index == index
    )


async def test_chat(served: Proxied, openai: AsyncOpenAI):
    served.say(STORY)
    reply = await chat(openai)
    (choice,) = reply.choices
    assert choice.message.content == STORY
    assert (choice.finish_reason, choice.message.role) == ("stop", "assistant")
    (request,) = served.node.requests
    assert not request.stream  # nobody watches: one piece is cheaper
    assert reply.usage.prompt_tokens == len(request.token_ids)
    assert reply.usage.completion_tokens == len(served.cipher(STORY)) + 1  # and the end id
    assert reply.model == MODEL and reply.object == "chat.completion"


async def test_the_node_hears_the_template_in_cipher_ids(served: Proxied, openai: AsyncOpenAI):
    served.say("ok")
    await openai.chat.completions.create(
        model=MODEL,
        messages=[
            {"role": "developer", "content": "Be brief"},
            {
                "role": "user",
                "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
            },
        ],
    )
    tokenizer = served.text_side._tokenizer
    expected = tokenizer.apply_chat_template(
        [{"role": "system", "content": "Be brief"}, {"role": "user", "content": "a\nb"}],
        add_generation_prompt=True,
        return_dict=False,
    )
    assert list(served.heard()) == expected
    (request,) = served.node.requests
    assert request.token_ids != tuple(expected)
    assert request.sampling_params.stop_token_ids == served.kit.codec.encode([EOS_ID])
    assert request.sampling_params.max_tokens == 512 - len(expected)
    assert len(request.cache_salt) >= 32


async def test_streamed_chat(served: Proxied, openai: AsyncOpenAI):
    served.say(STORY)
    chunks = await chunks_of(openai, stream_options={"include_usage": True})
    assert text_of(chunks) == STORY
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [one.choices[0].finish_reason for one in chunks[:-1] if one.choices].count("stop") == 1
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == len(served.cipher(STORY)) + 1
    assert {one.id for one in chunks} == {chunks[0].id}
    assert len(chunks) > 20  # it did stream


async def test_the_stream_is_exactly_server_sent_events(served: Proxied):
    served.say("Once upon")
    body = {"model": MODEL, "messages": ASK, "stream": True}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{served.base_url}/v1/chat/completions", json=body) as response,
    ):
        events = (await response.text()).split("\n\n")
    assert response.content_type == "text/event-stream"
    assert events[-2:] == ["data: [DONE]", ""]
    first, *middle, last = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
    assert first["object"] == "chat.completion.chunk"
    assert "usage" not in first
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
    assert [one["choices"][0]["delta"] for one in middle] == [
        {"content": "Once"},
        {"content": " upon"},
    ]
    assert last["choices"] == [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}]


@pytest.mark.parametrize("tokens_per_chunk", [1, 3, 100])
async def test_completion_continues_the_prompt(
    served: Proxied, openai: AsyncOpenAI, tokens_per_chunk
):
    served.node.tokens_per_chunk = tokens_per_chunk
    served.say(" there was a 🦄. ")
    prompt = "Once upon a time,"
    whole = served.text_side._backend.decode(
        served.text_side._backend.encode(prompt).ids
        + list(served.kit.codec.decode(served.cipher(" there was a 🦄. ")))
    )
    reply = await openai.completions.create(model=MODEL, prompt=prompt, max_tokens=50)
    assert prompt + reply.choices[0].text == whole
    stream = await openai.completions.create(model=MODEL, prompt=prompt, max_tokens=50, stream=True)
    assert prompt + "".join([chunk.choices[0].text async for chunk in stream]) == whole


async def test_completion_defaults_to_16_tokens_and_takes_every_kind_of_prompt(
    served: Proxied, openai: AsyncOpenAI
):
    for prompt in ("Once", ["Once", "upon"], [403, 407], [[403], [407]]):
        reply = await openai.completions.create(model=MODEL, prompt=prompt)
        n_prompts = 1 if prompt in ("Once", [403, 407]) else 2
        assert [one.index for one in reply.choices] == list(range(n_prompts))
        assert {one.finish_reason for one in reply.choices} == {"length"}
        assert reply.usage.completion_tokens == 16 * n_prompts
    assert served.heard() in {(403,), (407,)}


async def test_several_prompts_and_answers_stream_together(served: Proxied, openai: AsyncOpenAI):
    served.say("One", "Two")
    stream = await openai.completions.create(
        model=MODEL, prompt=["a", "b", "c"], n=2, stream=True, max_tokens=9
    )
    texts = dict.fromkeys(range(6), "")
    async for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == {index: " One" if index % 2 == 0 else " Two" for index in range(6)}


async def test_stop_strings_across_token_borders(served: Proxied, openai: AsyncOpenAI):
    served.say("There was a little girl named Lily. She loved to play outside in the park.")
    n_tokens = len(served.cipher("There was a little girl named Lily. She loved to"))
    for stop in ("d to p", ["outside", "d to p"], ["o play o", "d to p", "zzz"]):
        served.node.requests.clear()
        reply = await chat(openai, stop=stop)
        streamed = await chunks_of(openai, stop=stop)
        text = "There was a little girl named Lily. She love"
        assert reply.choices[0].message.content == text_of(streamed) == text
        assert reply.choices[0].finish_reason == streamed[-1].choices[0].finish_reason == "stop"
        assert n_tokens < reply.usage.completion_tokens <= n_tokens + 3
        # The node never learns the stop strings.
        assert served.node.requests[0].sampling_params == served.node.requests[1].sampling_params
        assert len(served.node.requests[0].sampling_params.stop_token_ids) == 1


async def test_a_stop_string_stops_the_node(served: Proxied, openai: AsyncOpenAI):
    served.node.pause_s = 0.01
    served.say("One. " + "and so on " * 40)
    assert text_of(await chunks_of(openai, stop=".")) == "One"
    await eventually(lambda: served.node.n_left_early == 1 and served.node.n_running == 0)


async def test_a_text_that_only_begins_like_a_stop_string_is_complete(
    served: Proxied, openai: AsyncOpenAI
):
    served.say("She went to the par")
    assert text_of(await chunks_of(openai, stop="park")) == "She went to the par"


async def test_several_answers(served: Proxied, openai: AsyncOpenAI):
    served.say("The first.", "The second ends later.")
    reply = await chat(openai, n=2)
    assert [one.message.content for one in reply.choices] == [
        "The first.",
        "The second ends later.",
    ]
    chunks = await chunks_of(openai, n=2)
    assert [text_of(chunks, index) for index in (0, 1)] == ["The first.", "The second ends later."]
    # One that a stop string ends must not end the other, nor lose its own reason.
    reply = await chat(openai, n=2, stop=["first"])
    assert [one.message.content for one in reply.choices] == ["The ", "The second ends later."]
    assert [one.finish_reason for one in reply.choices] == ["stop", "stop"]


async def test_chat_logprobs(served: Proxied, openai: AsyncOpenAI):
    served.say("Zoë 🦄")
    reply = await chat(openai, logprobs=True, top_logprobs=3)
    content = reply.choices[0].logprobs.content
    assert b"".join(bytes(one.bytes) for one in content).decode() == " Zoë 🦄"
    assert [one.token for one in content[-4:]] == [
        "bytes:\\xf0",
        "bytes:\\x9f",
        "bytes:\\xa6",
        "bytes:\\x84",
    ]
    assert {one.logprob for one in content} == {-0.5}
    for one in content:
        assert len(one.top_logprobs) == 3
        assert one.top_logprobs[0].bytes == one.bytes
        assert [top.logprob for top in one.top_logprobs] == [-0.5, -1.5, -9999.0]
    streamed = await chunks_of(openai, logprobs=True)
    tokens = [
        token
        for chunk in streamed
        if chunk.choices[0].logprobs
        for token in chunk.choices[0].logprobs.content
    ]
    assert [one.token for one in tokens] == [one.token for one in content]
    assert tokens[0].top_logprobs == []
    assert (await chat(openai)).choices[0].logprobs is None


async def test_completion_logprobs(served: Proxied, openai: AsyncOpenAI):
    served.say("Once upon a time")
    reply = await openai.completions.create(model=MODEL, prompt="x", logprobs=1, max_tokens=9)
    (choice,) = reply.choices
    assert choice.logprobs.tokens == [" Once", " upon", " a", " time"]
    assert choice.logprobs.token_logprobs == [-0.5] * 4
    assert choice.logprobs.top_logprobs[1] == {" upon": -0.5}
    for token, offset in zip(choice.logprobs.tokens, choice.logprobs.text_offset, strict=True):
        assert choice.text[offset:].startswith(token)


async def test_sampling_is_passed_through_and_ids_are_re_keyed(
    served: Proxied, openai: AsyncOpenAI
):
    await chat(
        openai,
        temperature=0.25,
        top_p=0.5,
        seed=-3,
        presence_penalty=0.5,
        frequency_penalty=-1,
        logit_bias={"7": 5, "9": -100},
        max_completion_tokens=11,
        extra_body={"top_k": 5, "min_p": 0.125, "repetition_penalty": 1.5, "min_tokens": 2},
    )
    params = served.node.requests[0].sampling_params
    codec = served.kit.codec
    assert params.logit_bias == {codec.encode_one(7): 5.0, codec.encode_one(9): -100.0}
    assert (params.temperature, params.top_p, params.seed) == (0.25, 0.5, -3)
    assert (params.presence_penalty, params.frequency_penalty) == (0.5, -1.0)
    assert (params.top_k, params.min_p, params.repetition_penalty) == (5, 0.125, 1.5)
    assert (params.max_tokens, params.min_tokens, params.ignore_eos) == (11, 2, False)


async def test_ignore_eos_names_no_stop_ids(served: Proxied, openai: AsyncOpenAI):
    await chat(openai, max_tokens=5, extra_body={"ignore_eos": True})
    params = served.node.requests[0].sampling_params
    assert params.ignore_eos and params.stop_token_ids == ()


async def test_max_tokens_ends_at_the_context(served: Proxied, openai: AsyncOpenAI):
    reply = await chat(openai, max_tokens=10_000)
    assert reply.choices[0].finish_reason == "length"
    assert reply.usage.total_tokens == 512


async def test_models(served: Proxied, openai: AsyncOpenAI):
    assert [one.id for one in (await openai.models.list()).data] == [MODEL]
    assert (await openai.models.retrieve(MODEL)).id == MODEL
    with pytest.raises(NotFoundError) as caught:
        await openai.models.retrieve("gpt-4")
    assert caught.value.code == "model_not_found"
    assert served.node.requests == []


async def test_32_at_once(served: Proxied, openai: AsyncOpenAI):
    served.node.pause_s = 0.005

    async def one(number: int) -> str:
        prompt = [403 + number % 100, 407]
        stream = await openai.completions.create(
            model=MODEL, prompt=prompt, max_tokens=20, stream=True
        )
        return "".join([chunk.choices[0].text async for chunk in stream])

    texts = await asyncio.gather(*map(one, range(32)))
    backend = served.text_side._backend
    for number, text in enumerate(texts):
        prompt = [403 + number % 100, 407]
        assert backend.decode(prompt) + text == backend.decode(prompt + prompt[::-1] * 10)
    assert served.node.n_running_at_most == 32
    assert served.node.n_card_requests == 1


async def test_an_application_that_leaves_stops_the_node(served: Proxied, openai: AsyncOpenAI):
    served.node.pause_s = 0.02
    stream = await openai.chat.completions.create(
        model=MODEL, messages=ASK, stream=True, max_tokens=400
    )
    async for chunk in stream:
        if chunk.choices[0].delta.content:
            break
    await stream.close()
    await eventually(lambda: served.node.n_left_early == 1 and served.node.n_running == 0)


async def test_leaving_before_the_answer_stops_the_node(served: Proxied, openai: AsyncOpenAI):
    served.node.pause_s = 30
    waiting = asyncio.create_task(chat(openai, max_tokens=5))
    await eventually(lambda: served.node.n_running == 1)
    waiting.cancel()
    await eventually(lambda: served.node.n_left_early == 1 and served.node.n_running == 0)


async def test_connections_to_the_node_are_kept(served: Proxied, openai: AsyncOpenAI):
    served.say("a b c d")
    served.node.farewell_s = 0.05
    for _ in range(3):
        await chunks_of(openai)
        await chat(openai)
    assert len(served.node.connections) == 1


async def test_every_reply_states_the_guarantee(served: Proxied):
    async with aiohttp.ClientSession() as session:
        for path in ("/health", "/v1/models", "/v1/models/x", "/nowhere", "/v1/completions"):
            async with session.get(served.base_url + path) as response:
                assert response.headers["x-veilrun-mode"] == "ee"
                assert response.headers["x-veilrun-stands-against"] == EE.stands_against
                assert response.headers["x-veilrun-does-not-stop"] == EE.does_not_stop
        body = {"model": MODEL, "messages": ASK, "stream": True, "max_tokens": 3}
        url = f"{served.base_url}/v1/chat/completions"
        async with session.post(url, json=body) as response:
            assert response.headers["x-veilrun-mode"] == "ee"
            await response.read()
