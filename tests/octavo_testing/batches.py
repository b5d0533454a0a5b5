"""Files and batches through the official client, for tests of what they do."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import openai
from openai.types import Batch

from octavo_testing.server import Server, a_chat, a_completion, fake_server

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


def a_line(number: int, url: str = CHAT, **body: Any) -> dict[str, Any]:
    body = {"seed": number, **body}
    content = a_chat(f"question {number}", **body) if url == CHAT else a_completion(f"prompt {number}", **body)
    return {"custom_id": f"line-{number}", "method": "POST", "url": url, "body": content}


def jsonl(*lines: Any) -> bytes:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    return ("\n".join(texts) + "\n").encode()


class Client:
    """The official client, and what each test does with it."""

    def __init__(self, server: Server, openai_client: openai.AsyncOpenAI) -> None:
        self.server = server
        self.openai = openai_client

    async def upload(self, content: bytes) -> str:
        return (await self.openai.files.create(file=("in.jsonl", content), purpose="batch")).id

    async def create(self, content: bytes, endpoint: str = CHAT, **more: Any) -> Batch:
        file_id = await self.upload(content)
        given: dict[str, Any] = {"completion_window": "24h", **more}
        return await self.openai.batches.create(input_file_id=file_id, endpoint=endpoint, **given)  # type: ignore[arg-type]

    async def until(self, batch: Batch, condition: Callable[[Batch], bool], timeout_s: float = 20.0) -> Batch:
        async with asyncio.timeout(timeout_s):
            while not condition(batch := await self.openai.batches.retrieve(batch.id)):
                await asyncio.sleep(0.01)
        return batch

    async def ended(self, batch: Batch) -> Batch:
        ends = ("completed", "failed", "expired", "cancelled")
        return await self.until(batch, lambda now: now.status in ends)

    async def entries(self, file_id: str | None) -> list[dict[str, Any]]:
        if file_id is None:
            return []
        text = (await self.openai.files.content(file_id)).text
        assert text.endswith("\n")
        return [json.loads(line) for line in text.splitlines()]


@asynccontextmanager
async def clients(tokenizer: Path, data_dir: Path, **config: Any) -> AsyncIterator[Client]:
    async with (
        fake_server(tokenizer, data_dir=str(data_dir), **config) as server,
        openai.AsyncOpenAI(
            base_url=server.url + "/v1", api_key=(config.get("api_key") or ("none",))[0], max_retries=0
        ) as made,
    ):
        yield Client(server, made)
