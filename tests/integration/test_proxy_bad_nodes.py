"""Every way in which a node can misbehave: the application gets the right error, in time, and
the next request to a node that has come to its senses works.
"""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from openai import APIError, APIStatusError, AsyncOpenAI, BadRequestError

from integration.fake_node import FakeNode, running, saying
from integration.proxied import MODEL, Proxied, TestKit, proxied
from veilrun.errors import RefusedError, TransportError, UsageError, VerificationError
from veilrun.serve.ask import Ask, Sampling
from veilrun.serve.node_address import insecure_plain_http_node_for_loopback_only, pinned_node
from veilrun.serve.node_client import NodeClient, NodeTimeouts

ASK = [{"role": "user", "content": "Tell me a story"}]
TIMEOUTS = NodeTimeouts(connect_s=2, card_s=2, stall_s=0.8, answer_s=0.8)

AT_ONCE = {
    "busy": (429, "rate_limit_exceeded"),
    "server error": (502, "peer_error"),
    "starting": (503, "node_unreachable"),
    "refuses": (400, None),
    "dies while refusing": (503, "node_unreachable"),
    "redirect": (502, "peer_error"),
    "compressed": (502, "peer_error"),
    "garbage": (502, "peer_error"),
    "other json": (502, "peer_error"),
    "foreign ids": (502, "peer_error"),
    "too many tokens": (502, "peer_error"),
    "other answer": (502, "peer_error"),
    "aborts": (503, "node_unreachable"),
    "no logprobs": (502, "peer_error"),
    "other logprobs": (502, "peer_error"),
}
MID_STREAM = {
    "hang": "node_timeout",
    "drip": "node_timeout",
    "empty chunks": "node_timeout",
    "dies": "node_unreachable",
    "ends early": "node_unreachable",
    "done too soon": "peer_error",
    "no events": "peer_error",
    "endless line": "peer_error",
    "reports an error": "peer_error",
}
CARDS = {
    "other checkpoint": (502, "peer_error"),
    "other vocabulary": (502, "peer_error"),
    "garbage card": (502, "peer_error"),
    "endless card": (502, "peer_error"),
}


@pytest.fixture
async def served(text_side, kit: TestKit, identity_folder):
    async with proxied(text_side, kit, identity_folder, timeouts=TIMEOUTS) as pair:
        pair.say("Once upon a time there was")
        yield pair


async def chat(openai: AsyncOpenAI, **options):
    # A limit so small that "endless" answers are soon too long; logprobs so that they are checked.
    return await openai.chat.completions.create(
        model=MODEL, messages=ASK, max_tokens=40, logprobs=True, **options
    )


async def works_again(served: Proxied, openai: AsyncOpenAI) -> None:
    served.node.fault = None
    reply = await chat(openai)
    assert reply.choices[0].message.content == "Once upon a time there was"


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("fault", AT_ONCE)
async def test_faults_before_the_first_text(served: Proxied, openai, fault, stream):
    served.node.fault = fault
    with pytest.raises(APIStatusError) as caught:
        async for _ in await chat(openai, stream=True) if stream else [await chat(openai)]:
            pass
    assert (caught.value.status_code, caught.value.code) == AT_ONCE[fault]
    if fault == "busy":
        assert caught.value.response.headers["Retry-After"] == "7"
    if caught.value.status_code == 502:  # a peer that misbehaves is not asked again
        assert caught.value.response.headers["x-should-retry"] == "false"
    if fault == "server error":
        assert "engine ?[31mgone" in caught.value.message
    assert len(served.node.requests) == 1
    await works_again(served, openai)


@pytest.mark.parametrize("fault", MID_STREAM)
async def test_faults_in_mid_stream(served: Proxied, openai, fault):
    served.node.fault = fault
    served.node.pause_s = 0.05  # so that the first chunks arrive before the fault
    text = ""
    started_s = time.monotonic()
    with pytest.raises(APIError) as caught:
        async for chunk in await chat(openai, stream=True):
            text += chunk.choices[0].delta.content or ""
    assert caught.value.code == MID_STREAM[fault]
    assert text == "Once upon"
    assert time.monotonic() - started_s < 6
    await works_again(served, openai)


async def test_the_failed_stream_ends_without_done(served: Proxied, openai):
    served.node.fault = "dies"
    served.node.pause_s = 0.01
    async with openai.chat.completions.with_streaming_response.create(
        model=MODEL, messages=ASK, stream=True
    ) as response:
        body = (await response.read()).decode()
    *_, last, rest = body.split("\n\n")
    assert last.startswith('data: {"error": {"message": ') and rest == ""
    assert "[DONE]" not in body


async def test_a_whole_answer_that_never_comes(served: Proxied, openai):
    served.node.pause_s = 30
    with pytest.raises(APIStatusError) as caught:
        await chat(openai)
    assert (caught.value.status_code, caught.value.code) == (504, "node_timeout")
    served.node.pause_s = 0
    await works_again(served, openai)


async def test_a_whole_answer_that_never_ends(served: Proxied, openai):
    served.node.fault = "endless body"
    with pytest.raises(APIStatusError) as caught:
        await chat(openai)
    assert (caught.value.status_code, caught.value.code) == (502, "peer_error")
    await works_again(served, openai)


@pytest.mark.parametrize("fault", ["dies", "garbage", "endless body"])
async def test_after_a_failure_the_card_is_checked_again(served: Proxied, openai, fault):
    await chat(openai)
    served.node.fault = fault
    with pytest.raises(APIError):
        async for _ in await chat(openai, stream=True) if fault == "dies" else [await chat(openai)]:
            pass
    served.node.fault = "other checkpoint"
    n_requests = len(served.node.requests)
    with pytest.raises(APIStatusError, match="another key or model"):
        await chat(openai)
    assert len(served.node.requests) == n_requests


@pytest.mark.parametrize("fault", CARDS)
async def test_no_token_is_sent_to_a_node_with_the_wrong_card(served: Proxied, openai, fault):
    served.node.fault = fault
    with pytest.raises(APIStatusError) as caught:
        await chat(openai)
    assert (caught.value.status_code, caught.value.code) == CARDS[fault]
    assert served.node.requests == []
    await works_again(served, openai)


ONE = Ask((3, 4, 5), 4, Sampling())


async def test_a_node_with_another_certificate_hears_nothing(kit, identity_folder, tmp_path):
    node = FakeNode(kit.codec.vocab_size, kit.codec.fingerprint)
    async with running(FakeNode(1, "00" * 16), tmp_path) as other, running(node, identity_folder):
        async with NodeClient(
            pinned_node(node.url, other.pin), kit.codec, (2,), TIMEOUTS
        ) as client:
            with pytest.raises(VerificationError, match="certificate is sha256:"):
                await client.complete(ONE)
    assert node.n_card_requests == 0 and node.requests == []


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_a_refused_request_is_the_applications_fault(served: Proxied, openai, stream):
    served.node.fault = "refuses"
    with pytest.raises(BadRequestError) as caught:
        await chat(openai, stream=stream)
    assert caught.value.type == "invalid_request_error"
    assert "the node refuses the request: top_k is ?[31mtoo odd" in caught.value.message
    await works_again(served, openai)
    assert served.node.n_card_requests == 1  # it is the same node as before


async def test_what_could_be_too_long_for_one_piece_comes_as_a_stream(kit, identity_folder):
    node = FakeNode(kit.codec.vocab_size, kit.codec.fingerprint, rule=saying((7, 8, 9)))
    long = replace(ONE, max_tokens=16_384, sampling=Sampling(n=2, logprobs=20))
    async with running(node, identity_folder):
        async with NodeClient(pinned_node(node.url, node.pin), kit.codec, (2,)) as client:
            whole = await client.complete(replace(ONE, sampling=long.sampling))
            deltas = await client.complete(long)
    assert [one.stream for one in node.requests] == [False, True]
    assert len(whole) == 2 and len(deltas) == 8
    for index in range(2):
        ids = [one for delta in deltas if delta.index == index for one in delta.ids]
        assert ids == [*kit.codec.decode((7, 8, 9)), 2]


async def test_a_node_that_is_not_there(kit, unused_tcp_port):
    address = pinned_node(f"https://127.0.0.1:{unused_tcp_port}", "sha256:" + "00" * 32)
    async with NodeClient(address, kit.codec, (2,), TIMEOUTS) as client:
        with pytest.raises(TransportError, match="failed"):
            await client.complete(ONE)


async def test_a_node_that_does_not_speak_tls(kit, tmp_path):
    node = FakeNode(kit.codec.vocab_size, kit.codec.fingerprint)
    async with running(node, tmp_path, tls=False):
        address = pinned_node(node.url.replace("http:", "https:"), "sha256:" + "00" * 32)
        async with NodeClient(address, kit.codec, (2,), TIMEOUTS) as client:
            with pytest.raises(TransportError):
                await client.complete(ONE)
        assert node.n_card_requests == 0


async def test_plain_http_needs_the_long_option_and_loopback(kit, tmp_path):
    node = FakeNode(kit.codec.vocab_size, kit.codec.fingerprint)
    async with running(node, tmp_path, tls=False):
        with pytest.raises(RefusedError, match="must begin with https"):
            pinned_node(node.url, "sha256:" + "00" * 32)
        address = insecure_plain_http_node_for_loopback_only(node.url)
        async with NodeClient(address, kit.codec, (2,), TIMEOUTS) as client:
            (delta,) = await client.complete(ONE)
    assert delta.ids == (5, 4, 3, 5)


async def test_an_idle_connection_that_was_closed_is_no_failure(kit, identity_folder):
    node = FakeNode(kit.codec.vocab_size, kit.codec.fingerprint)
    async with running(node, identity_folder):
        async with NodeClient(pinned_node(node.url, node.pin), kit.codec, (2,)) as client:
            await client.complete(ONE)
            node.fault = "drops the next"
            (delta,) = await client.complete(ONE)
    assert delta.finish_reason == "length"
    assert node.n_card_requests == 2  # it may have been restarted with something else


async def test_used_outside_of_its_block():
    address = insecure_plain_http_node_for_loopback_only("http://localhost:1")
    with pytest.raises(RuntimeError):
        await NodeClient(address, None, ()).card()  # type: ignore[arg-type]


def test_an_ask_does_not_show_its_prompt():
    assert "77" not in repr(replace(ONE, prompt_ids=(77, 78)))
    with pytest.raises(UsageError):
        pinned_node("https://localhost:1", "md5:00")
