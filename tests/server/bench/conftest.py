"""The tiny model, made once a run."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from aiohttp import web

from octavo_testing.server import a_tiny_model, write_tokenizer


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return a_tiny_model(tmp_path_factory.getbasetemp() / "tiny-model")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Tiny matrices gain nothing from torch's threads, and on a busy machine their barriers cost milliseconds each."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.getbasetemp() / "tiny-tokenizer"
    return folder if folder.exists() else write_tokenizer(folder)


@pytest.fixture
async def aiohttp_peer() -> AsyncIterator[str]:
    """Another maker's server: one answer to every chat, streamed or not."""

    async def chat(http: web.Request) -> web.StreamResponse:
        if not (await http.json()).get("stream"):
            return web.json_response({"choices": [{"message": {"content": "Paris."}, "finish_reason": "stop"}]})
        stream = web.StreamResponse()
        await stream.prepare(http)
        for delta in ({"content": "Par"}, {"content": "is."}):
            await stream.write(b"data: " + json.dumps({"choices": [{"delta": delta}]}).encode() + b"\n\n")
        await stream.write(b"data: [DONE]\n\n")
        return stream

    async def models(_: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "a.gguf", "owned_by": "llamacpp"}]})

    async def props(_: web.Request) -> web.Response:
        settings = {"n_ctx": 1024, "params": {}}
        content = {"total_slots": 8, "build_info": "b1", "default_generation_settings": settings, "chat_template": "{}"}
        return web.json_response(content)

    app = web.Application()
    app.router.add_post("/v1/chat/completions", chat)
    app.router.add_get("/v1/models", models)
    app.router.add_get("/props", props)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()
