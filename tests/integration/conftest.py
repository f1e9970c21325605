"""Fixtures of the proxy's tests: a real tokenizer, loaded once, and a proxy per test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from openai import AsyncOpenAI

from integration.proxied import MODEL, Proxied, TestKit, codec_of, proxied, tokenizer_folder
from veilrun.serve.text import TextSide, load_text_side


@pytest.fixture(scope="session")
def kit(stories: Path, tmp_path_factory: pytest.TempPathFactory) -> TestKit:
    folder = tokenizer_folder(stories, tmp_path_factory.mktemp("tokenizer"))
    return TestKit(folder, codec_of())


@pytest.fixture(scope="session")
def text_side(kit: TestKit) -> TextSide:
    return load_text_side(kit.tokenizer_folder, MODEL)


@pytest.fixture(scope="session")
def identity_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("identity")


@pytest.fixture
async def served(
    text_side: TextSide, kit: TestKit, identity_folder: Path
) -> AsyncIterator[Proxied]:
    async with proxied(text_side, kit, identity_folder) as pair:
        yield pair


@pytest.fixture
async def openai(served: Proxied) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(
        base_url=f"{served.base_url}/v1", api_key="none", max_retries=0
    ) as client:
        yield client
