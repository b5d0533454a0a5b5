"""The official client, unchanged."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import openai
import pytest

from octavo_testing.server import NAME, Server, real_server


@pytest.fixture
async def server(tiny_model: Path) -> AsyncIterator[Server]:
    async with real_server(tiny_model, api_key=("secret",)) as running:
        yield running


@pytest.fixture
async def client(server: Server) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="secret", max_retries=0) as made:
        yield made


async def test_chat_whole_and_streamed(client: openai.AsyncOpenAI) -> None:
    messages = [{"role": "user", "content": "What is a pod?"}]
    whole = await client.chat.completions.create(
        model=NAME, messages=messages, max_tokens=20, temperature=0, logprobs=True, top_logprobs=2
    )  # type: ignore[call-overload]  # plain dicts, as people write them

    stream = await client.chat.completions.create(
        model=NAME,
        messages=messages,
        max_tokens=20,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]

    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert whole.choices[0].message.content == text
    assert whole.usage.completion_tokens == chunks[-1].usage.completion_tokens
    assert whole.usage.prompt_tokens == chunks[-1].usage.prompt_tokens
    assert whole.choices[0].logprobs.content[0].top_logprobs


async def test_completions_whole_and_streamed(client: openai.AsyncOpenAI) -> None:
    whole = await client.completions.create(model=NAME, prompt="The quick", max_tokens=12, temperature=0)

    stream = await client.completions.create(model=NAME, prompt="The quick", max_tokens=12, temperature=0, stream=True)

    assert whole.choices[0].text == "".join([chunk.choices[0].text async for chunk in stream])


async def test_models_are_listed(client: openai.AsyncOpenAI) -> None:
    listed = [model async for model in client.models.list()]

    assert [model.id for model in listed] == [NAME]
    model = (await client.models.retrieve(NAME)).model_dump()
    assert (model["max_model_len"], model["root"], model["parent"]) == (512, NAME, None)
    assert model["permission"][0]["allow_sampling"] is True


async def test_errors_are_the_clients_own_classes(server: Server, client: openai.AsyncOpenAI) -> None:
    async def ask(**fields: object) -> None:
        body = {"model": NAME, "prompt": "x", "max_tokens": 4, **fields}
        await client.completions.create(**body)  # type: ignore[call-overload]  # a table of fields

    with pytest.raises(openai.BadRequestError) as bad:
        await ask(temperature=9)
    with pytest.raises(openai.NotFoundError):
        await ask(model="other")
    assert (bad.value.param, bad.value.type) == ("temperature", "invalid_request_error")
    async with openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="wrong", max_retries=0) as stranger:
        with pytest.raises(openai.AuthenticationError):
            await stranger.models.list()
