"""What may take long is no business of the event loop's thread, on which every stream waits."""

from __future__ import annotations

import importlib
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from octavo_testing.server import NAME, Server, a_chat, a_completion, fake_server

PAD = " " * 2**18
"""In a field that nobody reads: enough for the body to be a large one."""


@pytest.fixture
async def server(tokenizer_folder: Path) -> AsyncIterator[Server]:
    async with fake_server(tokenizer_folder) as running:
        yield running


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], list[bool]]:
    """Notes at each call of a function of the API whether the event loop's thread made it."""
    loop_thread = threading.current_thread()

    def begin(module: str, name: str) -> list[bool]:
        owner = importlib.import_module(f"octavo_server.api.{module}")
        real, calls = getattr(owner, name), []

        def noting(*args: Any, **kwargs: Any) -> Any:
            calls.append(threading.current_thread() is loop_thread)
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, name, noting)
        return calls

    return begin


@pytest.mark.parametrize(
    ("path", "body", "module", "name"),
    [
        ("/v1/completions", a_completion([5, 6]), "completions", "parse_completion"),
        ("/v1/chat/completions", a_chat(), "chat", "parse_chat"),
        ("/v1/embeddings", {"model": NAME, "input": "a"}, "embeddings", "parse_embedding"),
        ("/v1/score", {"text_1": "a", "text_2": "b"}, "scores", "parse_score"),
        ("/v1/rerank", {"query": "a", "documents": ["b"]}, "scores", "parse_rerank"),
        ("/tokenize", {"prompt": "a"}, "tokens", "parse_tokenize"),
        ("/detokenize", {"tokens": [5]}, "tokens", "parse_detokenize"),
    ],
)
async def test_a_large_body_is_checked_beside_the_loop(
    server: Server, watch: Callable[[str, str], list[bool]], path: str, body: dict[str, Any], module: str, name: str
) -> None:
    on_loop = watch(module, name)

    small = await server.post(path, body)
    large = await server.post(path, {**body, "pad": PAD})

    assert (small.status, large.status) == (200, 200)
    assert on_loop == [True, False]


@pytest.mark.parametrize(
    ("path", "body", "module", "name"),
    [
        ("/v1/completions", a_completion(prompt_logprobs=2), "completions", "prompt_logprobs_json"),
        ("/v1/chat/completions", a_chat(logprobs=True, top_logprobs=2), "chat_shape", "chat_logprobs"),
        ("/v1/completions", a_completion([5, 6], echo=True), "completions", "echoed_texts"),
    ],
)
async def test_log_probabilities_and_echoed_texts_are_worded_beside_the_loop(
    server: Server, watch: Callable[[str, str], list[bool]], path: str, body: dict[str, Any], module: str, name: str
) -> None:
    on_loop = watch(module, name)

    assert (await server.post(path, body)).status == 200

    assert on_loop
    assert not any(on_loop)
