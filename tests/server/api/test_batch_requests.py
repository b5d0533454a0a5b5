"""What requests about batches may ask for: pages, and the refusals of what cannot be served."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from octavo_testing.batches import CHAT, Client, a_line, clients, jsonl
from octavo_testing.server import fake_server


@pytest.fixture
async def client(tokenizer_folder: Path, tmp_path: Path) -> AsyncIterator[Client]:
    async with clients(tokenizer_folder, tmp_path / "data") as made:
        yield made


async def test_batches_are_listed_in_pages(client: Client) -> None:
    file_id = await client.upload(jsonl(a_line(1)))
    made = [
        (await client.openai.batches.create(input_file_id=file_id, endpoint=CHAT, completion_window="24h")).id  # type: ignore[arg-type]
        for _ in range(5)
    ]

    listed = [batch.id async for batch in client.openai.batches.list(limit=2)]
    first = await client.openai.batches.list(limit=2)

    assert listed == made[::-1]
    assert (first.has_more, len(first.data)) == (True, 2)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"endpoint": "/v1/images"}, "endpoint"),
        ({"endpoint": None}, "endpoint"),
        ({"completion_window": "1y"}, "completion_window"),
        ({"completion_window": "59s"}, "completion_window"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"metadata": {str(n): "" for n in range(17)}}, "metadata"),
        ({"metadata": {"k" * 65: ""}}, "metadata"),
        ({"metadata": {"\ud800": ""}}, "metadata"),
        ({"output_expires_after": {"anchor": "now", "seconds": 3600}}, "output_expires_after.anchor"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 1}}, "output_expires_after.seconds"),
        ({"input_file_id": ""}, "input_file_id"),
    ],
)
async def test_a_field_that_cannot_be_served_is_named(client: Client, body: dict[str, Any], param: str) -> None:
    file_id = await client.upload(jsonl(a_line(1)))
    good = {"input_file_id": file_id, "endpoint": CHAT, "completion_window": "24h"}

    answer = await client.server.post("/v1/batches", {**good, **body})

    assert (answer.status, answer.json["error"]["param"]) == (400, param)


async def test_a_batch_needs_a_file_that_was_sent_for_it(client: Client) -> None:
    batch = await client.ended(await client.create(jsonl(a_line(1))))
    for file_id, status in (("file-none", 404), ("../../lock", 404), (batch.output_file_id, 400)):
        body = {"input_file_id": file_id, "endpoint": CHAT, "completion_window": "24h"}
        assert (await client.server.post("/v1/batches", body)).status == status


@pytest.mark.parametrize("path", ["/v1/batches/batch_none", "/v1/files/file-none", "/v1/files/..%2flock/content"])
async def test_what_is_not_there_is_404(client: Client, path: str) -> None:
    answer = await client.server.get(path)

    assert (answer.status, answer.json["error"]["code"]) == (404, "not_found")


@pytest.mark.parametrize(
    ("query", "param"),
    [("limit=0", "limit"), ("limit=x", "limit"), ("limit=101", "limit"), ("order=up", "order"), ("after=x", "after")],
)
async def test_a_page_that_cannot_be_is_refused(client: Client, query: str, param: str) -> None:
    answer = await client.server.get(f"/v1/batches?{query}")

    assert (answer.status, answer.json["error"]["param"]) == (400, param)


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/v1/files"), ("GET", "/v1/files"), ("POST", "/v1/batches"), ("GET", "/v1/batches/batch_1")],
)
async def test_without_a_data_dir_the_flag_is_named(tokenizer_folder: Path, method: str, path: str) -> None:
    async with (
        fake_server(tokenizer_folder) as server,
        server.session.request(method, server.url + path, json={}) as answer,
    ):
        error = (await answer.json())["error"]

    assert (answer.status, error["code"]) == (404, "not_enabled")
    assert "--data-dir" in error["message"]
