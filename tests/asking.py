"""Asking an engine and putting the pieces of its answers together."""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import replace

from veilrun.node.engine import Engine
from veilrun.wire.generate import Choice, GenerateRequest, SamplingParams


async def pieces(engine: Engine, ids: tuple[int, ...], params: SamplingParams) -> list[Choice]:
    async with aclosing(engine.generate(GenerateRequest(ids, params))) as choices:
        return [one async for one in choices]


async def answers(
    engine: Engine, ids: tuple[int, ...], params: SamplingParams
) -> dict[int, Choice]:
    whole: dict[int, Choice] = {}
    for piece in await pieces(engine, ids, params):
        before = whole.get(piece.index, Choice(piece.index, ()))
        assert before.finish_reason is None
        logprobs = None
        if piece.logprobs is not None:
            logprobs = (before.logprobs or ()) + piece.logprobs
        token_ids = before.token_ids + piece.token_ids
        whole[piece.index] = replace(piece, token_ids=token_ids, logprobs=logprobs)
    assert all(one.finish_reason is not None for one in whole.values())
    return whole


async def answer(engine: Engine, ids: tuple[int, ...], params: SamplingParams) -> Choice:
    (only,) = (await answers(engine, ids, params)).values()
    return only
